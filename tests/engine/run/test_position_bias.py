"""Position bias in run.json: before and after rotation, against what the prompts of one order alone give."""

from __future__ import annotations

import numpy as np


def recall_std(rows, scores_of):
    """Standard deviation of the recalls of the positions, by loops."""
    recalls = []
    for position in range(max(len(row.question.options) for row in rows)):
        found = [
            int(np.argmax(scores_of(row))) == position for row in rows if row.question.answer == position
        ]
        if found:
            recalls.append(sum(found) / len(found))
    return float(np.std(recalls))


def test_before_and_after_rotation(checkpoint, score):
    model = checkpoint("llama-gqa")
    plain = score(model=model, head="letters")
    rotated = score(model=model, head="letters", debias="rotate")
    bias = rotated.record["metrics"]["position_bias"]
    np.testing.assert_allclose(
        bias["after"]["recall_std"], recall_std(rotated.scores, lambda row: row.scores)
    )
    np.testing.assert_allclose(bias["before"]["recall_std"], recall_std(plain.scores, lambda row: row.scores))
    told = plain.record["metrics"]["position_bias"]
    assert "before" not in told
    assert told["after"] == bias["before"]
