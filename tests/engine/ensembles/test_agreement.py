"""Agreement against a loop, and the correlation of errors against scikit-learn's for two binary sequences."""

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from strata.engine.ensembles.agreement import measure_agreement
from strata.engine.types import InputError

from .planted_members import make_row, planted_members


def test_like_a_loop_and_scikit_learn():
    members = planted_members(200, seed=0)
    found = measure_agreement(members)
    assert found.names == ("good", "noise", "complement")
    assert (found.num_questions == 200).all()
    errors = {n: [row.order[0] != row.question.answer for row in rows] for n, rows in members.items()}
    for i, one in enumerate(members):
        for j, other in enumerate(members):
            pairs = zip(members[one], members[other], strict=True)
            same = np.mean([a.order[0] == b.order[0] for a, b in pairs])
            assert found.same_answer[i, j] == pytest.approx(same)
            correlation = matthews_corrcoef(errors[one], errors[other])
            assert found.error_correlation[i, j] == pytest.approx(correlation)
    assert found.error_correlation[0, 2] < -0.3 < found.error_correlation[0, 1]


def test_members_with_different_questions():
    members = {
        "a": [make_row([0.0, 1], 0, "1"), make_row([0.0, 1], 1, "2"), make_row([0.0, 1], None, "3")],
        "b": [make_row([1.0, 0], None, "3"), make_row([0.0, 1], 1, "2")],
        "c": [make_row([1.0, 0], 0, "9")],
    }
    found = measure_agreement(members)
    assert found.num_questions.tolist() == [[3, 2, 0], [2, 2, 0], [0, 0, 1]]
    assert found.num_answered.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert found.same_answer[0, 1] == 0.5
    assert np.isnan(found.same_answer[0, 2])
    assert found.error_correlation[0, 0] == pytest.approx(1)
    # b is right wherever it is answered, so its errors vary with nothing.
    assert np.isnan(found.error_correlation[0, 1])


def test_no_member():
    with pytest.raises(InputError, match="no member"):
        measure_agreement({})
