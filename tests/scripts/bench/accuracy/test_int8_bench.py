"""The int8 bench on a tiny model: its figures by hand, and its keys."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from strata.engine.json_files import read_json_object
from strata.scripts.bench.accuracy import int8
from strata.scripts.bench.accuracy.config import Int8BenchConfig

from ....sample_questions import QUESTIONS, write_jsonl


def test_agreement_and_error() -> None:
    exact = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 1.0])}
    found = {"a": np.array([5.0, 6.0]), "b": np.array([1.0, 2.0])}
    assert int8.top1_agreement(found, exact) == 0.5
    # "a" is moved as a whole; "b" differs by -2 and 1, so by -1.5 and 1.5 around its mean.
    assert int8.rms_error(found, exact) == pytest.approx(1.5 / 2**0.5)


def test_keys_and_what_is_kept(checkpoint, fixed_rates, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(int8, "RESULTS", tmp_path / "results")
    for name in ("arc_challenge_val", "openbookqa_dev"):
        write_jsonl(tmp_path / f"{name}.jsonl", QUESTIONS)
    config = Int8BenchConfig(
        data=tmp_path, model=checkpoint("llama-gqa"), folder=tmp_path / "runs", plain=("v_proj",)
    )
    assert int8.run_int8_bench(config) == 0
    monkeypatch.setattr(int8, "score_questions", None)
    monkeypatch.setattr(int8, "run_pack", None)
    assert int8.run_int8_bench(config) == 0
    lines = (tmp_path / "results" / "int8.jsonl").read_text(encoding="ascii").splitlines()
    found, again = (json.loads(line) for line in lines)
    assert found["num_questions"] == len(QUESTIONS)
    assert found["int8_rank_agreement"] == found["int8_top1_agreement"] / found["bfloat16_top1_agreement"]
    assert found["int8_score_rms_error"] == again["int8_score_rms_error"] > 0
    ignored = read_json_object(tmp_path / "runs" / "packed" / "config.json")["quantization_config"]["ignore"]
    assert any("v_proj" in name for name in ignored)
    assert str(tmp_path) not in lines[0]
