"""What a bench leaves: lines of JSON, an environment line, a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from strata.scripts.bench import record
from strata.scripts.bench.configs import LargeBenchConfig


def test_results_append_as_lines_of_json_and_end_stdout(tmp_path, capsys):
    results_dir = tmp_path / "results"
    for rate in (np.float32(0.5), 2):
        record.append_result("sweep", {"config": {"shape": "tiny"}, "resident_over_naive": rate}, results_dir)
    lines = (results_dir / "sweep.jsonl").read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    results = [json.loads(line) for line in lines]
    assert [result["resident_over_naive"] for result in results] == [0.5, 2]
    assert {"bench", "date", "commit", "machine", "versions", "config"} <= set(results[0])
    assert results[0]["date"].endswith("+00:00")
    assert results[0]["versions"]["torch"] == str(torch.__version__)
    assert results[0]["machine"]["num_cores"] >= 1


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"ratio": 1.0}, "no 'config'"),
        ({"config": {}, "date": "today"}, r"holds \['date'\]"),
        ({"config": {}, "ratio": float("nan")}, "not JSON compliant"),
    ],
)
def test_results_that_mean_nothing_are_refused(result, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        record.append_result("sweep", result, tmp_path)
    assert not (tmp_path / "sweep.jsonl").exists()


def test_environment_line_is_one_line_with_versions():
    line = record.environment_line()
    assert "\n" not in line
    assert all(word in line for word in ("cores", "GiB RAM", "torch 2.", "transformers 5.", "commit "))


def test_what_makes_another_machine_of_this_one_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("HOME", "/nowhere")
    record.append_result("sweep", {"config": {}}, tmp_path)
    variables = json.loads((tmp_path / "sweep.jsonl").read_text())["machine"]["variables"]
    assert variables["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "HOME" not in variables


def test_commit_is_unknown_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert record._commit() == "unknown"


def test_table_aligns_and_takes_text_literally(capsys):
    record.print_table([{"way": "[naive]", "tok/s": 1234.56, "ratio": 4.0, "n": 12000}])
    out = capsys.readouterr().out
    assert "| [naive] | 1,234.6 | 4.000 | 12,000 |" in out
    assert out.isascii()


def test_parts_run_in_the_order_asked_for_each_under_its_name(capsys):
    def part(name):
        return lambda config: print(f"{name} of {config}") or {name: config}

    parts = {name: part(name) for name in ("first", "second", "third")}
    assert record.run_parts(parts, ("third", "first"), 7) == {"third": 7, "first": 7}
    assert capsys.readouterr().out.splitlines() == ["-- third", "third of 7", "-- first", "first of 7"]


def test_recorded_settings_name_no_folder():
    asked = record.asked_settings(LargeBenchConfig(folder=Path("/somewhere"), shape="tiny"))
    assert asked["shape"] == "tiny"
    assert "folder" not in asked
