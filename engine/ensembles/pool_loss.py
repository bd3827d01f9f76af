"""The mean negative log-likelihood of a pool of members as a function of their weights, and its gradient.

Legend: M members, Q questions, O options of the question that has most. The weight of a member that lacks a
question goes to the others there: w_mq = w_m a_mq / sum over k of w_k a_kq, where a_mq is 1 where
m has q, else 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strata.engine.calibration.answered import MIN_LOG_PROBABILITY
from strata.engine.ensembles.aligned import AlignedQuestion
from strata.engine.ensembles.combine import Scale, log_opinion

SHRINKAGE = 1e-6
"""Share of equal weights in those that the loss is computed with: keeps logarithms of them finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolLoss:
    """What the loss is made of.

    Attributes:
        opinions: [M, Q, O] float64 logarithms, see `combine.log_opinion`; 0 where a member or option is not.
        has_question: [M, Q] 1.0 or 0.0.
        has_option: [Q, O].
        answers: [Q].
        over: the pool.
    """

    opinions: np.ndarray
    has_question: np.ndarray
    has_option: np.ndarray
    answers: np.ndarray
    over: Scale

    def value_and_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Nats a question, and its derivatives by the weights [M]."""
        blended = (1 - SHRINKAGE) * weights + SHRINKAGE / len(weights)
        shares = blended @ self.has_question
        pool = self._logarithmic if self.over == "logits" else self._linear
        value, gradient = pool(blended, shares)
        return value, (1 - SHRINKAGE) * gradient

    def _linear(self, weights: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray]:
        """-log(sum w_m p_m / sum w_m) of the answer; d/dw_m = -(p_m / sum w p - a_m / sum w a)."""
        log_p = np.take_along_axis(self.opinions, self.answers[None, :, None], axis=2)[:, :, 0]
        log_p = np.where(self.has_question > 0, log_p, -np.inf)
        log_pool = np.logaddexp.reduce(np.log(weights)[:, None] + log_p, axis=0)
        slopes = np.exp(log_p - log_pool) - self.has_question / shares
        return float((np.log(shares) - log_pool).mean()), -slopes.mean(axis=1)

    def _logarithmic(self, weights: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray]:
        """log-sum-exp(z) - z_answer of z = sum w_m l_m / sum w_m; dz/dw_m = a_m (l_m - z) / sum w a."""
        z = np.einsum("m,mqo->qo", weights, self.opinions) / shares[:, None]
        masked = np.where(self.has_option, z, -np.inf)
        log_sums = np.logaddexp.reduce(masked, axis=1)
        residuals = np.exp(masked - log_sums[:, None])
        residuals[np.arange(len(z)), self.answers] -= 1
        slopes = np.einsum("qo,mqo->mq", residuals, self.opinions - z) * self.has_question / shares
        value = (log_sums - np.take_along_axis(z, self.answers[:, None], axis=1)[:, 0]).mean()
        return float(value), slopes.mean(axis=1)


def pool_loss_of(questions: Sequence[AlignedQuestion], names: Sequence[str], over: Scale) -> PoolLoss:
    """The loss on answered questions.

    Raises:
        ValueError: a score is NaN or plus infinity, or all of a member's are minus infinity.
    """
    num_options = np.array([len(found.question.options) for found in questions])
    opinions = np.zeros((len(names), len(questions), num_options.max()))
    has_question = np.zeros(opinions.shape[:2])
    for place, found in enumerate(questions):
        for member, name in enumerate(names):
            if name in found.rows:
                opinion = log_opinion(found.rows[name].scores, over)
                opinions[member, place, : num_options[place]] = np.maximum(opinion, MIN_LOG_PROBABILITY)
                has_question[member, place] = 1
    return PoolLoss(
        opinions=opinions,
        has_question=has_question,
        has_option=np.arange(num_options.max()) < num_options[:, None],
        answers=np.array([found.question.answer for found in questions]),
        over=over,
    )
