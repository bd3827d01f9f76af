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
    config = HarnessBenchConfig(models=(model,), data=tmp_path, sets=("few",), folder=tmp_path / "kept")
    assert harness.run_harness_bench(config) == 0
    found = json.loads((tmp_path / "harness.jsonl").read_text())
    ending = f"{model.name}_few"
    assert found[f"lm_eval_max_abs_diff_{ending}"] < 1e-3
    assert found[f"acc_{ending}"] == found[f"lm_eval_acc_{ending}"]
    assert found[f"acc_norm_{ending}"] == found[f"lm_eval_acc_norm_{ending}"]


def test_what_is_kept_is_not_asked_again(tmp_path, monkeypatch):
    """Stopped in the second piece of three, a call goes on there; the sums are those of one go."""
    monkeypatch.setattr(harness, "PIECE_QUESTIONS", 2)
    questions = [
        Question(id=str(number), prompt=f"What is {number}?", options=("a", "b")) for number in range(5)
    ]
    asked: list[str] = []

    def answer(piece, stops_at=None):
        if stops_at in [question.id for question in piece]:
            raise KeyboardInterrupt
        asked.extend(question.id for question in piece)
        return [np.array([-1.1 - int(question.id), -2.0]) for question in piece]

    with pytest.raises(KeyboardInterrupt):
        harness.keep_pieces(tmp_path, questions, lambda piece: answer(piece, stops_at="3"))
    assert asked == ["0", "1"]
    found = harness.keep_pieces(tmp_path, questions, answer)
    assert asked == ["0", "1", "2", "3", "4"]
    np.testing.assert_array_equal(found, answer(questions))


def test_pieces_of_other_questions_are_refused(tmp_path):
    first, other = (Question(id="1", prompt=text, options=("a", "b")) for text in ("One?", "Two?"))
    harness.keep_pieces(tmp_path, [first], lambda piece: [np.zeros(2)])
    with pytest.raises(InputError, match=r"0-1\.json: holds other questions") as caught:
        harness.keep_pieces(tmp_path, [other], lambda piece: [np.zeros(2)])
    assert "\n" not in str(caught.value)


def test_without_lm_eval_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match="lm-eval"):
        harness.run_harness_bench(HarnessBenchConfig(models=(tmp_path,), data=tmp_path))
