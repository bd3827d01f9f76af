"""A bench's child process: settings reach it whole, folders stay behind, and its answer is its last line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from strata.scripts.bench.configs import TrainBenchConfig
from strata.scripts.bench.limited_process import answer_parent
from strata.scripts.bench.record import asked_settings


def test_a_child_is_given_the_settings_of_its_parent(monkeypatch, capsys):
    asked = TrainBenchConfig(parts=("large", "demo"), limit_gib=3.5, folder=Path("/elsewhere"))
    given: list[tuple[Path, TrainBenchConfig]] = []

    def measure(checkpoint: Path, config: TrainBenchConfig) -> dict[str, float]:
        print("noise")
        given.append((checkpoint, config))
        return {"seconds": 1.5}

    monkeypatch.setattr(sys, "argv", ["child", "/a/model", json.dumps(asked_settings(asked))])
    answer_parent(measure, TrainBenchConfig)
    ((checkpoint, config),) = given
    assert checkpoint == Path("/a/model")
    assert asked_settings(config) == asked_settings(asked)
    assert config.folder == TrainBenchConfig().folder
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"seconds": 1.5}


def test_a_setting_that_the_child_does_not_know_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["child", "/a/model", json.dumps({"speed": 1})])
    with pytest.raises(TypeError, match="speed"):
        answer_parent(lambda checkpoint, config: {}, TrainBenchConfig)
