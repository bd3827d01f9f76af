"""From scores to probabilities over a question's options, and their average. Knows no head."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from strata.engine.types import Prompt, QuestionScores


def rank_options(prompt: Prompt, scores: np.ndarray) -> QuestionScores:
    """The result of a prompt whose options have these scores [O].

    Raises:
        FloatingPointError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise FloatingPointError("scores are not finite: the head's weights hold NaN or inf")
    return QuestionScores(question=prompt.question, scores=scores, probabilities=option_probabilities(scores))


def option_probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax over the options.

    Args:
        scores: [O] log-probabilities or logits; minus infinity is probability 0.

    Returns:
        [O] float64, summing to 1.

    Raises:
        ValueError: If a score is NaN or plus infinity, or all are minus infinity.
    """
    return np.exp(log_softmax(scores))


def average_probabilities(several: Iterable[np.ndarray]) -> np.ndarray:
    """Logarithm [O] of the mean of softmax(scores) over several arrays of scores [O].

    Computed in the log domain, so that nothing underflows. Raises as `option_probabilities` does.
    """
    log_probabilities = np.stack([log_softmax(scores) for scores in several])
    return np.logaddexp.reduce(log_probabilities, axis=0) - np.log(len(log_probabilities))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """[O] float64 logarithm of the softmax; raises as `option_probabilities` does."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values.max()):
        raise ValueError(f"expected one number an option, at least one of them finite; got {values.tolist()}")
    shifted = values - values.max()
    return shifted - np.log(np.exp(shifted).sum())
