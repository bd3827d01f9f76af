"""Every causal model type of transformers is right or refused by name; docs/families.md says which."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers

from strata.scripts.bench.trust import families
from strata.scripts.bench.trust.families import (
    WalkedFamily,
    causal_model_types,
    families_page,
    walk_families,
    walk_family,
)

PAGE = Path(__file__).parents[4] / "docs" / "families.md"


def test_a_right_one_and_a_refused_one() -> None:
    """In a process of its own: a child that is forked beside threads of other tests may never compute."""
    code = (
        "from strata.scripts.bench.trust.families import walk_family; "
        "print([walk_family(name) for name in ('llama', 'bart')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True
    )
    right = WalkedFamily(model_type="llama", outcome="right")
    refused = WalkedFamily(model_type="bart", outcome="refused", reason="has no layers")
    assert done.stdout.splitlines()[-1] == str([right, refused])


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (lambda config: time.sleep(60), "takes more than 0.5 s"),
        (lambda config: {}["absent"], "KeyError: 'absent'"),
        (lambda config: exit(7), "SystemExit: 7"),
        (lambda config: __import__("os")._exit(7), "its process ended with status 7"),
    ],
    ids=["hangs", "raises", "leaves", "dies"],
)
def test_whatever_else_happens_is_wrong(trouble, told, monkeypatch) -> None:
    monkeypatch.setattr(families, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(families, "build_rehearsed", trouble)
    assert walk_family("llama") == WalkedFamily(model_type="llama", outcome="wrong", reason=told)


def test_a_refusal_has_to_name_the_type(monkeypatch) -> None:
    def refuse(config: object) -> None:
        raise families.InputError("something is odd")

    monkeypatch.setattr(families, "build_rehearsed", refuse)
    assert walk_family("llama").outcome == "wrong"


def types_on_page(title: str) -> list[str]:
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = [each for each in section if each.startswith(title)]
    return re.findall(r"^\| `([\w-]+)` \|" if title == "Refused" else r"`([\w-]+)`", found, re.MULTILINE)


def test_the_page_has_every_type_once() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}" not in page:
        pytest.skip("the page is of another transformers")
    assert types_on_page("Wrong") == []
    assert len(types_on_page("Right")) >= 40
    assert sorted(types_on_page("Right") + types_on_page("Refused")) == causal_model_types()


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_no_family_is_wrong_and_the_page_is_true() -> None:
    walked = walk_families(causal_model_types())
    assert [family for family in walked if family.outcome == "wrong"] == []
    page = families_page(walked)
    if f"transformers {transformers.__version__}" in PAGE.read_text(encoding="utf-8"):
        assert types_on_page("Right") == [each.model_type for each in walked if each.outcome == "right"]
    assert f"## Right ({sum(each.outcome == 'right' for each in walked)})" in page
