"""Metrics of labels: macro F1 spelled out as precision and recall, a label at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.engine.questions.label_metrics import evaluate_labels, macro_f1
from strata.engine.types import Question, QuestionScores

NAMES = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abce")), min_size=1, max_size=20)


def f1(label: str, answers: list[str], predictions: list[str]) -> float:
    """Harmonic mean of precision and recall, 0 without a hit."""
    hits = sum(one == other == label for one, other in zip(answers, predictions, strict=True))
    if not hits:
        return 0.0
    precision, recall = hits / predictions.count(label), hits / answers.count(label)
    return 2 * precision * recall / (precision + recall)


@given(NAMES)
def test_macro_f1_is_the_mean_over_the_labels_that_occur(pairs):
    answers, predictions = [one for one, _ in pairs], [other for _, other in pairs]
    labels = set(answers) | set(predictions)
    expected = np.mean([f1(label, answers, predictions) for label in labels])
    assert macro_f1(answers, predictions) == pytest.approx(expected)


def row(scores, answer):
    question = Question(id="q", prompt="t", options=("sea", "hill", "moon"), answer=answer, is_text=True)
    return QuestionScores(question=question, scores=np.array(scores), probabilities=np.array(scores))


def test_metrics_of_answered_texts():
    rows = [row([0.9, 0.1, 0.0], 0), row([0.2, 0.3, 0.5], 0), row([0.1, 0.8, 0.1], 1), row([1, 0, 0], None)]
    metrics = evaluate_labels(rows)
    assert metrics["num_answered"] == 3
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["map_at_3"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    # sea: precision 1, recall 1/2; hill: 1 and 1; moon: predicted once, never right.
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics["heuristics"]["commonest_label_accuracy"] == pytest.approx(2 / 3)
    assert evaluate_labels(rows[3:]) is None
