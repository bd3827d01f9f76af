"""How good the labels of a run are, where they are known, beside what no model at all would reach.

Source of macro F1: the mean over labels of 2 TP / (2 TP + FP + FN), 0 where that is 0 / 0, as scikit-learn's
f1_score(average="macro") over the labels that occur as answer or as prediction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from strata.engine.questions.metrics import accuracy, map_at_k, uniform_map_at_3
from strata.engine.types import QuestionScores


def evaluate_labels(scores: Sequence[QuestionScores]) -> dict | None:
    """Metrics over the texts whose label is known.

    Returns:
        num_answered, map_at_3, accuracy, macro_f1 and heuristics {uniform_map_at_3,
        commonest_label_accuracy}; None when no label is known.
    """
    answered = [(row, row.question.answer) for row in scores if row.question.answer is not None]
    if not answered:
        return None
    orders, answers = [row.order for row, _ in answered], [answer for _, answer in answered]
    names = [row.question.options[answer] for row, answer in answered]
    best = [row.question.options[row.order[0]] for row, _ in answered]
    return {
        "num_answered": len(answers),
        "map_at_3": map_at_k(orders, answers),
        "accuracy": accuracy(orders, answers),
        "macro_f1": macro_f1(names, best),
        "heuristics": {
            "uniform_map_at_3": uniform_map_at_3([len(row.question.options) for row, _ in answered]),
            "commonest_label_accuracy": max(Counter(names).values()) / len(names),
        },
    }


def macro_f1(answers: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean F1 over the labels that occur in either of two sequences of equal length."""
    expected, predicted = Counter(answers), Counter(predictions)
    hits = Counter(answer for answer, found in zip(answers, predictions, strict=True) if answer == found)
    labels = expected | predicted
    return sum(2 * hits[label] / (expected[label] + predicted[label]) for label in labels) / len(labels)
