"""The debias bench on a tiny shape: counts against arithmetic, and a record of every figure."""

from __future__ import annotations

import json

import pytest

from strata.engine.heads.debiasing.pride import LEAST_SAMPLE
from strata.scripts.bench.debias import debias
from strata.scripts.bench.debias.config import DebiasBenchConfig


def test_counts_and_ratios(tmp_path, monkeypatch, capsys, fixed_rates):
    monkeypatch.setattr(debias, "RESULTS", tmp_path / "results")
    config = DebiasBenchConfig(
        shape="tiny",
        folder=tmp_path,
        num_questions=2,
        counted_questions=100,
        prefix_tokens=30,
        option_tokens=4,
        rounds=1,
        device="cpu",
    )
    assert debias.run_debias_bench(config) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    one, rotated = 30 + 20, 30 + 5 * 20
    assert found["tokens_one_order"] == 100 * one
    assert found["rotate_cost_ratio"] == found["rotations_token_ratio"] == rotated / one
    pride = ((100 - LEAST_SAMPLE) * one + LEAST_SAMPLE * rotated) / (100 * one)
    assert found["pride_cost_ratio"] == pytest.approx(pride)
    assert found["rotations_ideal_ratio"] == rotated / one
    ratio = found["rotations_s"] / found["one_order_s"]
    assert found["rotations_over_ideal"] == pytest.approx(ratio / (rotated / one))
    assert (tmp_path / "results" / "debias.jsonl").is_file()
