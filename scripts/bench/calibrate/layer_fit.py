"""Fits what a decoder layer reaches to what whole layers took; arithmetic only, so that tests can check it.

The model is the one of `engine.plan.times`: matrices and attention are timed alone; what is left of the
whole layers' seconds is explained by element-wise work (a token), passes over the weights (a micro-batch) and
the rest of attention (a score), none of them negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from strata.engine.machine.rates import LayerRates
from strata.scripts.bench.calibrate.layer_runs import TimedRun


@dataclass(frozen=True, kw_only=True)
class LayerSample:
    """A whole layer's seconds, and what it computed."""

    seconds: float
    run: TimedRun


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """What the fit must know of the layer."""

    width: int
    num_heads: int
    head_dim: int
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class PartRates:
    """What the parts of a layer reach when each is timed alone.

    Attributes:
        linear_flop_per_s: of the matrices.
        attention_flop_per_s: of attention's products.
        softmax_scores_per_s: of the rest of attention.
        masked_keys: keys a row that its tile computes and masks.
        call_s: of a layer too small to compute anything.
        launches_ahead: of a card, that computes while the host launches what comes next.
    """

    linear_flop_per_s: float
    attention_flop_per_s: float
    softmax_scores_per_s: float
    masked_keys: float
    call_s: float
    launches_ahead: bool = False


def fit_attention(
    seconds: tuple[float, float], scores: float, head_dims: tuple[int, int]
) -> tuple[float, float]:
    """FLOP/s of attention's products and scores/s of the rest, from two runs that differ in head size.

    A run takes scores * (4 H / flop_per_s + 1 / scores_per_s); where noise leaves no sense in that, the
    products are given all of the run with the larger heads.
    """
    (short_s, long_s), (short, long) = seconds, head_dims
    per_flop = (long_s - short_s) / (4 * (long - short) * scores)
    if per_flop <= 0:
        return 4 * long * scores / long_s, float("inf")
    rest = short_s / scores - 4 * short * per_flop
    if rest <= 0:
        return 4 * long * scores / long_s, float("inf")
    return 1 / per_flop, 1 / rest


def fit_layer(samples: Sequence[LayerSample], sizes: LayerSizes, alone: PartRates) -> LayerRates:
    """Rates that explain the samples, each weighing the same.

    Args:
        samples: whole layers.
        sizes: of the layer.
        alone: what its parts reach.
    """
    score_s = 4 * sizes.head_dim / alone.attention_flop_per_s + 1 / alone.softmax_scores_per_s
    rows, left = [], []
    for sample in samples:
        run = sample.run
        scores = run.scores + run.tokens * alone.masked_keys * sizes.num_heads
        known_s = run.gemm_flops / alone.linear_flop_per_s + scores * score_s
        if not alone.launches_ahead:
            known_s += run.calls * alone.call_s
        features = (run.tokens * sizes.width, run.calls * sizes.weight_bytes, scores)
        rows.append([feature / sample.seconds for feature in features])
        left.append((sample.seconds - known_s) / sample.seconds)
    element_s, weights_byte_s, more_score_s = solve_nonnegative(np.array(rows), np.array(left))
    return LayerRates(
        linear_flop_per_s=alone.linear_flop_per_s,
        attention_flop_per_s=alone.attention_flop_per_s,
        softmax_scores_per_s=_rate(1 / alone.softmax_scores_per_s + more_score_s),
        elements_per_s=_rate(element_s),
        weights_bytes_per_s=_rate(weights_byte_s),
        call_s=alone.call_s,
        masked_keys=alone.masked_keys,
    )


def predict_seconds(
    run: TimedRun, rates: LayerRates, sizes: LayerSizes, *, launches_ahead: bool = False
) -> float:
    """What the rates say of a lane; the sum that `engine.plan.times` makes of a layer."""
    scores = run.scores + run.tokens * rates.masked_keys * sizes.num_heads
    computing_s = (
        run.gemm_flops / rates.linear_flop_per_s
        + scores * 4 * sizes.head_dim / rates.attention_flop_per_s
        + scores / rates.softmax_scores_per_s
        + run.tokens * sizes.width / rates.elements_per_s
        + run.calls * sizes.weight_bytes / rates.weights_bytes_per_s
    )
    calls_s = run.calls * rates.call_s
    return max(computing_s, calls_s) if launches_ahead else computing_s + calls_s


def solve_nonnegative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with no negative unknown; every subset of columns is tried, so for a few columns only.

    Args:
        matrix: [rows, columns] float.
        target: [rows] float.

    Returns:
        [columns] float.
    """
    columns = range(matrix.shape[1])
    best, least = np.zeros(matrix.shape[1]), float(np.square(target).sum())
    for size in range(1, matrix.shape[1] + 1):
        for chosen in map(list, combinations(columns, size)):
            # Columns differ by many orders of magnitude.
            scale = np.abs(matrix[:, chosen]).max(axis=0)
            found = np.linalg.lstsq(matrix[:, chosen] / scale, target, rcond=None)[0] / scale
            error = float(np.square(matrix[:, chosen] @ found - target).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(matrix.shape[1]), error
                best[chosen] = found
    return best


def _rate(seconds: float) -> float:
    return 1 / seconds if seconds > 0 else float("inf")
