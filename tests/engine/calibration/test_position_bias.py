"""Position bias against figures worked out by hand, and scikit-learn's recalls."""

import numpy as np
import pytest
from sklearn.metrics import recall_score

from strata.engine.calibration.position_bias import measure_position_bias
from strata.engine.types import InputError

from .planted_scores import make_row, planted_rows


def test_by_hand():
    first, second, third = [2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 1.0]
    rows = [make_row(first, 0), make_row(first, 1), make_row(second, 1), make_row(third, 0), make_row(first)]
    bias = measure_position_bias(rows)
    a, b, c = bias.positions
    assert (a.num_questions, a.num_gold, a.share_gold, a.share_answered, a.recall) == (4, 2, 0.5, 0.5, 0.5)
    assert (b.num_questions, b.num_gold, b.share_gold, b.share_answered, b.recall) == (4, 2, 0.5, 0.5, 0.5)
    assert (c.num_questions, c.num_gold, c.share_gold, c.share_answered, c.recall) == (3, 0, 0.0, 0.0, None)
    assert bias.recall_std == 0


def test_like_scikit_learn_with_a_planted_bias():
    rows = planted_rows(400, seed=0, sizes=(4,))
    pushed = [make_row(row.scores + np.array([0, 0, 2.0, 0]), row.question.answer) for row in rows]
    answers, best = [row.question.answer for row in rows], [row.order[0] for row in pushed]
    recalls = recall_score(answers, best, average=None)
    bias = measure_position_bias(pushed)
    assert [share.recall for share in bias.positions] == pytest.approx(recalls.tolist())
    assert bias.recall_std == pytest.approx(recalls.std())
    assert bias.recall_std > 0.1 > measure_position_bias(rows).recall_std
    assert bias.positions[2].share_answered > 2 * bias.positions[2].share_gold


def test_one_position_always_is_the_most_biased():
    rows = [make_row([1.0, 0.0], answer) for answer in (0, 1)]
    assert measure_position_bias(rows).recall_std == 0.5


def test_no_answer_is_known():
    with pytest.raises(InputError, match="known answer"):
        measure_position_bias([make_row([0.0, 1.0])])
