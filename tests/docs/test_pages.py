"""Pages say what the sources say: generated ones are current, quoted messages exist, the site is whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from strata.scripts.docs.flag_tables import flags_page
from strata.scripts.docs.plan_tables import MACHINES, SHAPES, USES, plans_page, shape_rows

from .sources import ROOT, VALUE, texts_of_sources

DOCS = ROOT / "docs"
FETCHES = re.compile(r"<(?:script|img|iframe)[^>]*\bsrc=\"?(?:https?:)?//|<link[^>]*\bhref=\"?(?:https?:)?//")
MESSAGES = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_page_of_flags_is_current() -> None:
    assert page("flags.md") == flags_page(), "make docs-pages writes it again"


@pytest.mark.parametrize("machine", MACHINES)
def test_the_page_of_plans_has_what_the_planner_says(machine: str) -> None:
    """One size on each machine; the whole page is compared by the slow test below."""
    section = page("plans.md").split(f"### {MACHINES[machine]}")[1].split("\n##")[0]
    assert shape_rows(USES[0], machine, "7B") == [
        row for row in section.split("\n") if row.startswith("| 7B ")
    ]


def test_the_page_of_plans_has_every_size() -> None:
    rows = [
        line
        for line in page("plans.md").split("\n")
        if line.startswith(tuple(f"| {size} " for size in SHAPES))
    ]
    assert len(rows) == len(USES) * len(MACHINES) * len(SHAPES) * 6
    for stored in ("fp16", "int8", "nf4"):
        assert sum(f"B | {stored} |" in row for row in rows) == len(rows) / 3


def test_the_readme_says_what_the_page_of_plans_says() -> None:
    """Hours of questions with contexts, from fp16 and computed in 16 bits: a column a machine."""
    contexts = page("plans.md").split(f"## {USES[1].title}")[1]
    for size in SHAPES:
        found = re.findall(rf"^\| {size} \| fp16 \| b?float16 \| ([0-9.,]+) ", contexts, re.M)
        assert len(found) == len(MACHINES)
        row = " | ".join(f"{hours} h" for hours in found)
        assert f"| {size} in fp16 | {row} |" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_of_plans_is_current() -> None:
    assert page("plans.md") == plans_page(), "make docs-pages writes it again"


def test_messages_are_quoted() -> None:
    assert len(MESSAGES) >= 25
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_one_that_the_sources_have(message: str) -> None:
    assert len(message.replace(VALUE, "").strip()) > 20, "too little of it to tell it from others"
    assert any(message in text for text in texts_of_sources())


@pytest.mark.parametrize("name", sorted(path.name for path in DOCS.glob("*.md")))
def test_files_that_a_page_names_are_there(name: str) -> None:
    folders = "engine|kernels|retrieval|scripts|tests|training"
    named = re.findall(rf"`((?:{folders})/[\w./-]+\.(?:py|json|jsonl|yaml|md))`", page(name))
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


def test_the_navigation_has_every_page() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = [name for section in settings["nav"] for names in section.values() for name in names]
    there = {path.name for path in DOCS.glob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == there


def test_the_page_of_installing_lists_every_extra() -> None:
    table = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]\n")[1]
    )
    extras = re.findall(r"^([\w-]+) = \[", table.split("\n[project")[0], re.M)
    rows = [line.split("|")[1] for line in page("install.md").split("\n") if line.startswith("| `")]
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(rows))) == sorted(set(extras) - {"dev"})


def test_the_figure_fetches_nothing() -> None:
    figure = (DOCS / "figures" / "sweep.svg").read_text(encoding="utf-8")
    assert "<script" not in figure
    assert re.findall(r"(?:href|src)=\"(?!#)", figure) == []


def test_the_site_is_built_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is of the extra docs")
    pytest.importorskip("material", reason="mkdocs-material is of the extra docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert {path.stem for path in DOCS.glob("*.md")} <= {path.stem for path in pages}
    for built in pages:
        assert not FETCHES.findall(built.read_text(encoding="utf-8")), built.name
