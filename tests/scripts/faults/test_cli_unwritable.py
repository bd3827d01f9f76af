"""Files that cannot be written: one line, status 1, and a submission that is whole or absent."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from strata.engine import files
from strata.engine.results import tables
from strata.scripts.cli import main

pytestmark = pytest.mark.usefixtures("fixed_rates")


def assert_one_line(capsys, *words: str) -> None:
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("strata: ")
    for word in words:
        assert word in line


ARTEFACTS = ["run.json", "submission.csv", "scores.parquet", "prompts.jsonl"]
REFUSALS = {"full disk": errno.ENOSPC, "no permission": errno.EACCES, "read-only": errno.EROFS}


def assert_submission_is_whole_or_absent(out: Path, *, absent: bool) -> None:
    """The submission goes first, so that no other file's failure costs it; it is never half-written."""
    if absent:
        assert not (out / "submission.csv").exists()
    else:
        assert len((out / "submission.csv").read_text(encoding="utf-8").splitlines()) == 5


def refuse_to_write(monkeypatch, name: str, number: int) -> None:
    original = files.flush_to_disk

    def flush_to_disk(path: Path) -> None:
        if name in path.name:
            raise OSError(number, os.strerror(number), str(path))
        original(path)

    monkeypatch.setattr(files, "flush_to_disk", flush_to_disk)


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_file_that_cannot_be_written_is_one_line_and_status_1(
    name, refusal, given, out, monkeypatch, capsys
):
    refuse_to_write(monkeypatch, name, REFUSALS[refusal])
    assert main([*given, "--save-prompts"]) == 1
    assert_one_line(capsys, "cannot write", name, os.strerror(REFUSALS[refusal]))
    assert_submission_is_whole_or_absent(out, absent=name in ("run.json", "submission.csv"))
    assert [path.name for path in out.glob(".*")] == [], "temporary files are left"
    if name != "run.json":
        record = json.loads((out / "run.json").read_text())
        assert (record["status"], record["error"]["type"]) == ("failed", "OutputError")


def test_a_disk_that_fills_up_while_parquet_is_written(given, out, monkeypatch, capsys):
    def write_table(table, path) -> None:
        Path(path).write_bytes(b"PAR1 and no more")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tables.pq, "write_table", write_table)
    assert main(given) == 1
    assert_one_line(capsys, "scores.parquet", "No space left on device")
    assert_submission_is_whole_or_absent(out, absent=False)
    assert not (out / "scores.parquet").exists()
    assert [path.name for path in out.glob(".*")] == []


def test_a_report_that_cannot_be_written_costs_nobody_the_submission(given, out, monkeypatch, capsys):
    refuse_to_write(monkeypatch, "report.html", errno.ENOSPC)
    assert main(given) == 1
    assert_one_line(capsys, "cannot write", "report.html")
    assert_submission_is_whole_or_absent(out, absent=False)


def test_hidden_states_for_which_the_disk_has_no_room(given, out, monkeypatch, capsys):
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert main([*given, "--hidden-store", "disk"]) == 1
    assert_one_line(capsys, "No space left on device", "out")
    assert not (out / "submission.csv").exists()
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(given, out, capsys):
    out.mkdir(mode=0o500)
    assert main(given) == 1
    assert_one_line(capsys, "cannot write", "out")


def test_a_file_where_the_folder_should_be(given, out, capsys):
    out.write_text("not a folder")
    assert main(given) == 2
    assert_one_line(capsys, "--out", "is a file")
    assert out.read_text() == "not a folder"


def test_results_of_an_older_run_are_not_taken_for_those_of_one_that_failed(given, out, monkeypatch, capsys):
    out.mkdir()
    for name in ("submission.csv", "scores.parquet", "report.html"):
        (out / name).write_text("old")
    refuse_to_write(monkeypatch, "submission.csv", errno.ENOSPC)
    assert main(given) == 1
    assert not [path.name for path in out.iterdir() if path.read_text() == "old"]
