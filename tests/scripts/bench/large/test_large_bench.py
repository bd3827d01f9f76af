"""The large bench on a tiny shape: what its child holds, and what is left when it dies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import InputError
from strata.scripts.bench.configs import LargeBenchConfig
from strata.scripts.bench.large import large


@pytest.mark.parametrize("storage", [None, pytest.param("nf4", marks=pytest.mark.slow)])
def test_large_bench_limits_the_child_and_removes_the_checkpoint(storage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(large, "RESULTS", tmp_path / "results")
    settings = {"shape": "tiny", "storage": storage, "folder": tmp_path, "limit_gib": 3.0, "memory_gib": 1.0}
    config = LargeBenchConfig(**settings, prefix_tokens=24, option_tokens=4, dtype="float32")
    held = np.ones(3 << 30, np.uint8)  # what this process holds is not the child's peak
    assert large.run_large_bench(config) == 0
    assert len(held) == 3 << 30
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0.1 < measured["peak_rss_gib"] < 3
    assert measured["tokens"] == 2 * (24 + 5 * 4)
    assert not list(Path(tmp_path).glob("tiny-*"))


def test_large_bench_says_when_the_child_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "RESULTS", tmp_path / "results")
    config = LargeBenchConfig(shape="tiny", folder=tmp_path, limit_gib=3.0, memory_gib=0.0001)
    with pytest.raises(InputError, match="ended with status"):
        large.run_large_bench(config)
    assert not list(Path(tmp_path).glob("tiny-*"))
