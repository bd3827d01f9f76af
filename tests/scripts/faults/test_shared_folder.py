"""Commands whose folder another run is at work in, and finished runs that nobody said may go."""

from __future__ import annotations

import json

import pytest

from strata.engine.folder_lock import lock_folder
from strata.scripts.cli import main

pytestmark = pytest.mark.usefixtures("fixed_rates")


def arguments_of(command: str, model: str, questions: str, corpus: str) -> list[str]:
    return {
        "score": ["--model", model, "--questions", questions, "--devices", "cpu"],
        "train": ["--model", model, "--questions", questions, "--devices", "cpu"],
        "index": ["--corpus", corpus],
        "pack": ["--model", model, "--format", "nf4"],
    }[command]


@pytest.mark.parametrize("command", ["score", "train", "index", "pack"])
def test_a_folder_in_use_is_refused_in_one_line(command, checkpoint, questions, tmp_path, capsys):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "a", "text": "Stars shine."}\n')
    out = tmp_path / "out"
    given = arguments_of(command, str(checkpoint("llama-gqa")), str(questions), str(corpus))
    capsys.readouterr()
    with lock_folder(out, "--out", beside=command == "pack"):
        assert main([command, *given, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"strata: --out: {out} is in use by another run (process ")
    assert not out.exists()


def test_a_finished_run_is_replaced_only_when_told_so(given, out, capsys):
    assert main(given) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    assert main(given) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == (
        f"strata: --out: {out} holds a finished run; expected --overwrite (or --resume), or another folder"
    )
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert main([*given, "--overwrite"]) == 0
    assert main([*given, "--resume"]) == 0
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    assert main(given) == 0
