"""How two run.json are compared, and what of them differs on purpose; for compare_checkouts.py."""

from __future__ import annotations

import re
from collections.abc import Iterator

SECTIONS = ("status", "error", "plan", "measured", "metrics", "warnings")
UNSTEADY = re.compile(r"_s$|seconds|_per_s|rates|budgets|bottleneck|roofline|measured.(peak|base|memory)")
"""Paths of values in run.json that no two runs share; that they are there is compared all the same."""
INTENDED = {
    r"run\.json: measured\.seconds_by_phase\.int8 check only after": "measured is taken after the int8 check",
    r"run\.json: (plan|measured)\.(trie_nodes|tokens_per_option_run) only before": "an encoder has no tree",
    r"run\.json: (plan|measured)\.bytes_read \d+ -> \d+": "a group reads its own embedding rows alone",
    r"run\.json: plan\.(memory|host)_bytes \d+ -> \d+": "adapters side by side are counted",
}
"""Differences to commit 823c82a, before the rooms, as patterns of what is printed, and why they are right."""


def reason_for(difference: str) -> str | None:
    """Why a difference is intended; None when it is not."""
    return next((why for pattern, why in INTENDED.items() if re.fullmatch(pattern, difference)), None)


def compare_records(before: dict, after: dict) -> Iterator[str]:
    """Values of two run.json that differ, or that only one of them has."""
    left, right = (
        {path: value for section in SECTIONS for path, value in flatten(section, record.get(section))}
        for record in (before, after)
    )
    for path in sorted(left.keys() | right.keys()):
        if path not in left or path not in right:
            yield f"run.json: {path} only {'before' if path in left else 'after'}"
        elif not UNSTEADY.search(path) and repr(left[path]) != repr(right[path]):
            yield f"run.json: {path} {repr(left[path])[:40]} -> {repr(right[path])[:40]}"


def flatten(path: str, value: object) -> Iterator[tuple[str, object]]:
    """The leaves of nested dicts with their dotted paths; lists and empty dicts are leaves."""
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for name, item in value.items():
        yield from flatten(f"{path}.{name}", item)
