"""Head loglik: the sum of an option's log-probabilities, also a character."""

from __future__ import annotations

import numpy as np


def _rank_last(scores: np.ndarray, has_targets: np.ndarray) -> np.ndarray:
    """The scores, with options of no tokens (their sum, 0, would win) below all others."""
    if has_targets.all() or not has_targets.any():
        return scores
    return np.where(has_targets, scores, scores[has_targets].min() - EMPTY_OPTION_PENALTY)


EMPTY_OPTION_PENALTY = 100.0
"""Nats by which an empty option's log-likelihood lies below the least likely other option's."""
