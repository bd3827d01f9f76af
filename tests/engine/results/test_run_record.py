"""run.json of runs that end well, badly and early."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from strata.engine import files
from strata.engine.files import OutputError
from strata.engine.results.run_record import RunRecord
from strata.engine.types import InputError, RunWarnings

from ..ground.test_files import fail_with_full_disk


def load(path):
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


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


def test_an_interrupt_that_a_library_reworded_is_still_one(tmp_path):
    def import_a_module():
        try:
            raise KeyboardInterrupt
        except BaseException as error:
            raise ImportError("initialization failed") from error

    with pytest.raises(ImportError), RunRecord(tmp_path / "run.json", {}):
        import_a_module()
    assert load(tmp_path / "run.json")["status"] == "interrupted"


def test_an_interrupt_while_the_end_is_told(tmp_path, monkeypatch):
    calls, write = [], RunRecord._write

    def interrupt_the_last(record):
        calls.append(record.status)
        if record.status == "done":
            raise KeyboardInterrupt
        write(record)

    monkeypatch.setattr(RunRecord, "_write", interrupt_the_last)
    with pytest.raises(KeyboardInterrupt), RunRecord(tmp_path / "run.json", {}) as record:
        record.begin()
    assert calls == ["running", "done", "interrupted"]
    assert load(record.path)["status"] == "interrupted"


def test_an_interrupt_before_the_beginning_leaves_the_record_of_another_run(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "done"}')
    with pytest.raises(KeyboardInterrupt), RunRecord(tmp_path / "run.json", {}):
        raise KeyboardInterrupt
    assert load(tmp_path / "run.json") == {"status": "done"}


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
