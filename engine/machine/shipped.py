"""The profiles that come with strata, by name, and what they were called before."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent / "profiles"
FORMER_NAMES = {"cpu": "cpu-zen4"}
"""Still understood, with a note beside the plan's rates."""


def shipped_names() -> list[str]:
    """Names of all profiles that come with strata."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def find_shipped(name: str) -> tuple[Path | None, str]:
    """The file of a profile and a note about its name; None where there is none of that name."""
    known = FORMER_NAMES.get(name, name)
    if known not in shipped_names():
        return None, ""
    others = ", ".join(other for other in shipped_names() if other.startswith("cpu") and other != known)
    note = "" if known == name else f" (--profile {name} means this one; there is {others}, too)"
    return SHIPPED / f"{known}.json", note
