"""Every family in float16, the dtype of a card without bfloat16, on the CPU. Checked against float32."""

import numpy as np
import pytest
import torch

from ..families import FAMILIES

SHARE_OF_SPREAD = 0.02
"""float16 rounds each of three layers' activations to 11 bits, which is far less than options differ by."""

# A router's choice may tip over where two experts are as good as equal.
TIPPING = {"mixtral": 0.2}


@pytest.mark.parametrize("family", FAMILIES)
def test_float16_scores_as_float32_up_to_rounding(family, checkpoint, score):
    settings = {"model": checkpoint(family), "head": "letters", "micro_batch_tokens": 64}
    exact, run = score(**settings), score(**settings, dtype="float16", hidden_store="ram", resident_layers=1)
    spread = max(np.ptp(row.scores) for row in exact.scores)
    for row, exact_row in zip(run.scores, exact.scores, strict=True):
        difference = np.abs(row.scores - exact_row.scores).max()
        assert 0 < difference <= TIPPING.get(family, SHARE_OF_SPREAD) * spread
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
