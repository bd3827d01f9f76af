"""A p-value for "the mean of bounded numbers is at least m", valid for any distribution and any sample size.

Source: Waudby-Smith and Ramdas 2024 (JRSS B), Estimating means of bounded random variables by betting; as an
upper confidence bound of a risk: Bates et al. 2021 (JACM), Distribution-free, risk-controlling prediction
sets.
"""

from __future__ import annotations

import numpy as np

MAX_LOST = 0.75
"""Share of the capital that one bet may lose, as the source advises (1/2 or 3/4)."""


def p_value_of_mean_at_least(values: np.ndarray, mean: float, *, level: float) -> float:
    """How unlikely values are, were their expectation at least `mean`.

    A gambler with capital 1 bets on each value being below the mean:

        K_t = product over i <= t of 1 - nu_i (x_i - m)

    If E[x_i | before] >= m, K is a non-negative supermartingale, whatever bets nu_i >= 0 are made from
    x_1 .. x_{i-1} alone, so that P(max K_t >= 1/a) <= a (Ville's inequality) and 1 / max K_t is a p-value.
    The bets are those of the source, large where the variance so far is small:

        mu_i = (1/2 + sum of x_j) / (i + 1), j <= i
        s_i^2 = (1/4 + sum of (x_j - mu_j)^2) / (i + 1), j <= i
        nu_i = min(MAX_LOST / (1 - m), sqrt(2 log(1 / level) / (n s_{i-1}^2)))

    Args:
        values: [n] float64 in 0..1, independent, in an order that does not depend on them.
        mean: m, in 0..1, below 1.
        level: the level at which the p-value will be used; it tunes the bets and bears on power only.

    Returns:
        0..1.
    """
    places = np.arange(1, len(values) + 1)
    means = (0.5 + np.cumsum(values)) / (places + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (places + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    bets = np.minimum(MAX_LOST / (1 - mean), np.sqrt(2 * np.log(1 / level) / (len(values) * before)))
    log_capital = np.cumsum(np.log1p(-bets * (values - mean)))
    return float(np.exp(-max(log_capital.max(), 0.0)))
