"""The comparison with lm-evaluation-harness, where that is installed."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from strata.engine.types import InputError, Question
from strata.scripts.bench import harness
from strata.scripts.bench.configs import HarnessBenchConfig

from ...sample_questions import QUESTIONS, write_jsonl


def test_accuracies_are_of_sums_and_of_sums_over_characters():
    questions = [
        Question(id="1", prompt="?", options=("a", "bbbb"), answer=0),
        Question(id="2", prompt="?", options=("aa", "bb"), answer=1),
    ]
    sums = [np.array([-2.0, -4.0]), np.array([-1.0, -3.0])]
    assert harness.accuracy(sums, questions, by_length=False) == 0.5
    assert harness.accuracy(sums, questions, by_length=True) == 0.0


def test_both_say_the_same(checkpoint, fixed_rates, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval.models.huggingface")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    write_jsonl(tmp_path / "few.jsonl", QUESTIONS)
    model = checkpoint("llama-gqa")
    assert harness.run_harness_bench(HarnessBenchConfig(model=model, data=tmp_path, sets=("few",))) == 0
    found = json.loads((tmp_path / "harness.jsonl").read_text())
    ending = f"{model.name}_few"
    assert found[f"lm_eval_max_abs_diff_{ending}"] < 1e-3
    assert found[f"acc_{ending}"] == found[f"lm_eval_acc_{ending}"]
    assert found[f"acc_norm_{ending}"] == found[f"lm_eval_acc_norm_{ending}"]


def test_without_lm_eval_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match="lm-eval"):
        harness.run_harness_bench(HarnessBenchConfig(model=tmp_path, data=tmp_path))
