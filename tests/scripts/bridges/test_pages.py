"""docs/api.md and docs/bridges.md: every block of code runs as it stands, one after the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from strata.scripts import cli

from ...sample_questions import QUESTIONS, write_jsonl
from . import tiny_rerankers

pytestmark = [pytest.mark.usefixtures("fixed_rates"), pytest.mark.filterwarnings("ignore")]

DOCS = Path(__file__).parents[3] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    found = [
        text for name, text in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")) if name == language
    ]
    assert found
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path, checkpoint, monkeypatch):
    """Where the pages' `model`, `reranker` and `questions.jsonl` are."""
    (tmp_path / "model").symlink_to(checkpoint("llama-gqa"))
    tiny_rerankers.build_decoder(tmp_path / "reranker", 1)
    write_jsonl(tmp_path / "questions.jsonl", QUESTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_all(codes: list[str]) -> dict[str, object]:
    names: dict[str, object] = {}
    for code in codes:
        exec(compile(code, "a block of the page", "exec"), names)
    return names


def test_the_library(folder, capsys):
    before = sorted(folder.iterdir())
    names = run_all(blocks("api.md", "python"))
    assert [row.question.id for row in names["rows"]] == ["1", "2"]
    assert len(names["from_file"]) == len(QUESTIONS)
    assert names["paris"] != names["rome"]
    assert sorted(folder.iterdir()) == before, "the library writes no file"
    assert capsys.readouterr().err == ""


def test_cross_encoder():
    codes = [code for code in blocks("bridges.md", "python") if "lm_eval" not in code]
    assert len(codes) == 2
    names = run_all(codes)
    assert len(names["scores"]) == len(names["best"]) == 2


def test_lm_eval(folder, data_set_cache, capsys):
    pytest.importorskip("lm_eval.evaluator")
    (task,) = blocks("bridges.md", "yaml")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "few.yaml").write_text(task)
    (command,) = blocks("bridges.md", "shell")
    program, *arguments = shlex.split(command)
    assert program == "strata"
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    assert "acc_norm" in capsys.readouterr().out
    (code,) = [code for code in blocks("bridges.md", "python") if "lm_eval" in code]
    results = run_all([code])["results"]
    assert 0 <= results["results"]["few"]["acc,none"] <= 1
