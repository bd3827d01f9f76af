"""Artefacts of a run: whole or absent, and exactly what the contract says."""

import csv
import errno
import json
import os
import re
import stat
import sys
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strata.engine import files
from strata.engine.files import OutputError, to_json, write_atomically
from strata.engine.results import machine_facts, tables
from strata.engine.results.machine_facts import collect_run_info
from strata.engine.results.run_record import RunRecord
from strata.engine.results.tables import read_scores, write_prompts, write_scores, write_submission
from strata.engine.types import Branch, InputError, Prompt, Question, QuestionScores, RunWarnings, Target


def make_scores(question_id, scores, answer=None, members=None):
    values = np.array(scores, dtype=np.float32)
    question = Question(id=question_id, prompt="p", options=("x",) * len(scores), answer=answer)
    probabilities = np.exp(values) / np.exp(values).sum()
    members = {name: np.array(member, dtype=np.float32) for name, member in (members or {}).items()}
    return QuestionScores(
        question=question, scores=values, probabilities=probabilities, member_scores=members
    )


def fail_with_full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_part_then_fail(path):
    path.write_text("half")
    fail_with_full_disk()


def test_atomic_write_replaces_the_old_file_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "out.txt"
    for text in ("old", "new"):
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text) and None)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["out.txt"]


def test_atomic_write_fills_a_temporary_file_in_the_same_folder(tmp_path):
    path, seen = tmp_path / "out.txt", []

    def write(temporary):
        temporary.write_text("text")
        seen.append((temporary.parent, temporary.name, path.exists()))

    write_atomically(path, write)
    ((folder, name, was_there),) = seen
    assert folder == tmp_path
    assert name != path.name
    assert not was_there


def test_atomic_write_leaves_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "out", lambda temporary: temporary.touch())
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "out")}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")])
def test_atomic_write_cleans_up_after_any_exception(tmp_path, error):
    (tmp_path / "out.txt").write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(tmp_path / "out.txt", write)
    assert os.listdir(tmp_path) == ["out.txt"]
    assert (tmp_path / "out.txt").read_text() == "old"


def test_full_disk_while_writing_leaves_nothing_and_names_the_file(tmp_path):
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "out.txt"))) as caught:
        write_atomically(tmp_path / "out.txt", write_part_then_fail)
    assert caught.value.errno == errno.ENOSPC
    assert "No space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_full_disk_while_flushing_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "submission.csv").write_text("old")
    monkeypatch.setattr(files.os, "fsync", fail_with_full_disk)
    with pytest.raises(OutputError, match=r"submission\.csv: No space left"):
        write_submission(tmp_path / "submission.csv", [make_scores("1", [1, 2])])
    assert os.listdir(tmp_path) == ["submission.csv"]
    assert (tmp_path / "submission.csv").read_text() == "old"


def test_full_disk_in_the_parquet_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(tables.pq, "write_table", lambda table, path: write_part_then_fail(path))
    with pytest.raises(OutputError, match=r"scores\.parquet: No space left"):
        write_scores(tmp_path / "scores.parquet", [make_scores("1", [1, 2])])
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_as_the_system_reports_it(tmp_path):
    def write(temporary):
        temporary.symlink_to("/dev/full")
        temporary.write_text("x" * 100_000)

    with pytest.raises(OutputError, match="No space left"):
        write_atomically(tmp_path / "out", write)
    assert os.listdir(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OutputError, match=r"out\.txt"):
        write_atomically(tmp_path / "runs" / "out.txt", lambda temporary: temporary.touch())


def test_submission_has_the_three_best_letters(tmp_path):
    path = tmp_path / "submission.csv"
    rows = [make_scores("7", [1, 0, -1, 5, -2]), make_scores("8", [0, 1]), make_scores("9", [2, 2, 2, 2])]
    write_submission(path, rows)
    assert path.read_bytes() == b"id,prediction\n7,D A B\n8,B A\n9,A B C\n"


def test_submission_reaches_the_last_of_26_letters(tmp_path):
    write_submission(tmp_path / "s.csv", [make_scores("1", range(26))])
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "1,Z Y X"


@pytest.mark.parametrize(
    "question_id", ["a,b", 'say "x"', " padded ", "two\nlines", "carriage\rreturn", "\u00e9"]
)
def test_submission_ids_survive_a_csv_reader(tmp_path, question_id):
    write_submission(tmp_path / "s.csv", [make_scores(question_id, [1, 2])])
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["id", "prediction"], [question_id, "B A"]]


def test_scores_columns_and_types(tmp_path):
    path = tmp_path / "scores.parquet"
    write_scores(path, [make_scores("a", [1, 3, 2], 2, {"big": [1, 2, 3]}), make_scores("b", [0, 1])])
    table = pq.read_table(path)
    types = {field.name: re.sub(r"<\w+: (\w+)>", r"<\1>", str(field.type)) for field in table.schema}
    columns = ["id", "scores", "probabilities", "order", "margin", "answer", "member_big"]
    kinds = ["string", "list<double>", "list<double>", "list<int32>", "double", "int32", "list<double>"]
    assert list(types.items()) == list(zip(columns, kinds, strict=True))
    assert table["order"].to_pylist() == [[1, 2, 0], [1, 0]]
    assert table["answer"].to_pylist() == [2, None]
    assert table["member_big"].to_pylist() == [[1.0, 2.0, 3.0], None]
    assert table["margin"].to_pylist()[1] == pytest.approx(np.tanh(0.5), abs=1e-6)


def test_scores_round_trip(tmp_path):
    # A member may carry the name of a column of ours.
    path = tmp_path / "scores.parquet"
    written = [make_scores("007", [1, 3, 2], 2, {"scores": [1, 2, 3]}), make_scores("b", [0, 1])]
    write_scores(path, written)
    for row, found in zip(written, read_scores(path), strict=True):
        assert found.question.id == row.question.id
        assert found.question.answer == row.question.answer
        assert len(found.question.options) == len(row.scores)
        assert (found.order, found.margin) == (row.order, pytest.approx(row.margin))
        np.testing.assert_array_equal(found.scores, row.scores)
        np.testing.assert_array_equal(found.probabilities, row.probabilities)
        assert {name: list(member) for name, member in found.member_scores.items()} == {
            name: list(member) for name, member in row.member_scores.items()
        }


def test_scores_of_no_question(tmp_path):
    write_scores(tmp_path / "scores.parquet", [])
    assert read_scores(tmp_path / "scores.parquet") == []


def test_reading_something_else_names_the_file(tmp_path):
    (tmp_path / "text.parquet").write_text("id,prediction\n")
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "other.parquet")
    for name, reason in (("text", "expected"), ("other", "no column 'scores'"), ("absent", "expected")):
        with pytest.raises(InputError, match=rf"{name}\.parquet.*{reason}"):
            read_scores(tmp_path / f"{name}.parquet")


def make_prompt(question_id="q", text="Caf\u00e9\u2028x"):
    question = Question(id=question_id, prompt="p", options=("x", "y"))
    letters = Branch(
        option=np.int64(1),
        order=(1, 0),
        label="A",
        token_ids=np.array([1, 5, 9], dtype=np.int32),
        text=text,
        targets=(Target(position=2, token_id=np.int32(9)), Target(position=3, token_id=4)),
    )
    classifier = replace(letters, order=(), label=None, targets=(Target(position=2, token_id=None),))
    return Prompt(question=question, branches=(letters, classifier))


def test_prompts_hold_what_the_contract_says(tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", [make_prompt(), make_prompt("r")])
    # splitlines() also splits at U+2028, so that this fails if the text were written raw.
    first, second = (json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines())
    shared = {"option": 1, "ids": [1, 5, 9], "text": "Caf\u00e9\u2028x"}
    letters = shared | {"order": [1, 0], "label": "A", "targets": [[2, 9], [3, 4]]}
    classifier = shared | {"order": [], "label": None, "targets": [[2, None]]}
    assert first == {"id": "q", "branches": [letters, classifier]}
    assert second["id"] == "r"


def test_prompts_are_streamed_and_absent_after_a_failure(tmp_path):
    def prompts():
        for number in range(2000):
            yield make_prompt(str(number))
        (part,) = tmp_path.iterdir()
        assert part.name != "prompts.jsonl"
        assert part.stat().st_size > 0
        raise ValueError("tokenizer broke")

    with pytest.raises(ValueError, match="tokenizer broke"):
        write_prompts(tmp_path / "prompts.jsonl", prompts())
    assert os.listdir(tmp_path) == []


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Config:
    model: Path
    sizes: tuple[int, ...] = (1, 2)


def load(path):
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_to_json_takes_what_runs_hold():
    value = {
        1: np.float32(0.5),
        "nan": [float("nan"), float("inf"), np.float64("-inf"), np.array([1.0, np.nan])],
        "config": Config(model=Path("models") / "m"),
        "flags": {np.bool_(True), True},
        "set": {"b", "a"},
        "enum": Colour.RED,
        "type": np.dtype("int8"),
    }
    assert to_json(value) == {
        "1": 0.5,
        "nan": [None, None, None, [1.0, None]],
        "config": {"model": str(Path("models") / "m"), "sizes": [1, 2]},
        "flags": [True],
        "set": ["a", "b"],
        "enum": "red",
        "type": "int8",
    }


def test_record_of_a_good_run(tmp_path):
    warnings = RunWarnings()
    record = RunRecord(tmp_path / "out" / "run.json", {"model": Path("m"), "limit": None}, warnings)
    with record:
        record.begin()
        assert load(record.path)["status"] == "running"
        record.plan["micro_batch_tokens"] = 4096
        record.measured["tok_per_s"] = np.float32("nan")
        record.metrics = {"map_at_3": np.float64(0.5)}
        warnings.odd_row("empty option", "7", "file, row 1")
        warnings.say("no GPU")
    found = load(record.path)
    assert list(found) == ["status", "error", "run_info", "plan", "measured", "metrics", "warnings"]
    assert (found["status"], found["error"]) == ("done", None)
    assert found["run_info"]["config"] == {"model": "m", "limit": None}
    assert found["plan"] == {"micro_batch_tokens": 4096}
    assert found["measured"] == {"tok_per_s": None}
    assert found["metrics"] == {"map_at_3": 0.5}
    assert found["warnings"] == {
        "rows": {"empty option": {"count": 1, "ids": ["7"]}},
        "messages": ["no GPU"],
    }
    assert os.listdir(tmp_path / "out") == ["run.json"]


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("two\n lines"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
@pytest.mark.parametrize("begins", [True, False])
def test_record_of_a_failing_run_is_written_and_the_error_propagates(tmp_path, error, status, begins):
    record = RunRecord(tmp_path / "run.json", {})

    def run():
        with record:
            record.measured["bytes_read"] = 12
            if begins:
                record.begin()
            raise error

    with pytest.raises(type(error)):
        run()
    found = load(record.path)
    assert found["status"] == status
    assert found["error"] == {"type": type(error).__name__, "message": " ".join(str(error).split())}
    assert found["measured"] == {"bytes_read": 12}


def test_bad_input_leaves_no_folder_before_begin_and_a_record_after(tmp_path):
    record = RunRecord(tmp_path / "out" / "run.json", {})
    with pytest.raises(InputError), record:
        raise InputError("no column 'A'")
    assert os.listdir(tmp_path) == []

    def fail_after_begin():
        with record:
            record.begin()
            raise InputError("shard truncated")

    with pytest.raises(InputError):
        fail_after_begin()
    assert load(record.path)["error"] == {"type": "InputError", "message": "shard truncated"}


def test_a_record_that_cannot_be_written_never_hides_the_error_of_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files.os, "fsync", fail_with_full_disk)
    with pytest.raises(RuntimeError, match="worker died"), RunRecord(tmp_path / "run.json", {}):
        raise RuntimeError("worker died")
    assert "run.json: No space left" in caplog.text
    with pytest.raises(OutputError, match=r"run\.json"), RunRecord(tmp_path / "run.json", {}):
        pass
    assert os.listdir(tmp_path) == []


def test_run_info_says_where_and_with_what(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["strata", "score", "--out", "a folder"])
    monkeypatch.setenv("STRATA_TEST_TOKEN", "do-not-record-me")
    info = collect_run_info({"out": Path("a folder")})
    json.dumps(info, allow_nan=False)
    assert {"strata", "commit", "python", "torch", "transformers", "machine", "command", "config"} <= set(
        info
    )
    assert info["command"] == "strata score --out 'a folder'"
    assert info["torch"].split(".")[0] == "2"
    assert info["machine"]["ram_gib"] > 0.1
    assert info["machine"]["num_usable_cores"] >= 1
    assert "do-not-record-me" not in json.dumps(info)
    root = Path(machine_facts.__file__).resolve().parents[2]
    if (root / ".git").exists():
        assert info["commit"] is None or re.fullmatch(r"[0-9a-f]{40,64}", info["commit"])


def test_run_info_outside_a_checkout_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(
        machine_facts, "__file__", str(tmp_path / "strata" / "engine" / "results" / "machine_facts.py")
    )
    assert collect_run_info({})["commit"] is None


def test_gpus_are_read_from_nvidia_smi(monkeypatch):
    monkeypatch.setattr(machine_facts.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        machine_facts, "read_command", lambda *_: "Tesla T4, 15360, 550.1\nNew, One, [N/A], 1"
    )
    assert machine_facts.list_gpus() == [
        {"name": "Tesla T4", "memory_gib": 15.0, "driver": "550.1"},
        {"name": "New, One", "memory_gib": None, "driver": "1"},
    ]
    monkeypatch.setattr(machine_facts, "read_command", lambda *_: None)
    assert machine_facts.list_gpus() is None
    monkeypatch.setattr(machine_facts.shutil, "which", lambda name: None)
    assert machine_facts.list_gpus() == []
