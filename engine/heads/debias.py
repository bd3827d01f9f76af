"""Takes the preference for a position out of the scores of a question that is shown in several orders.

Knows nothing of prompts or models: it sees one score an option for each order in which the options were
shown. A branch carries the option's index in its own question, so un-rotating is grouping by `Branch.order`.

Legend: O options of one question, B its branches, R orders in which they were shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from strata.engine.heads.probabilities import average_probabilities, log_softmax
from strata.engine.types import Branch

STATED_ORDER = "stated_order"
"""Name of the member scores [O] of the order that the question states: what they are without debiasing."""
BY_PLACE = "by_place"
"""Name of the member scores [O] that are the mean log-probability of each place, over the orders shown."""


def rotations(num_options: int) -> tuple[tuple[int, ...], ...]:
    """All cyclic orders of the options, the stated one first: (0, 1, 2), (1, 2, 0), (2, 0, 1)."""
    places = range(num_options)
    return tuple(tuple((start + place) % num_options for place in places) for start in places)


def group_by_order(
    branches: Sequence[Branch], branch_scores: Sequence[float]
) -> dict[tuple[int, ...], np.ndarray]:
    """Sorts the scores of a question's branches by the order their prompt shows.

    Args:
        branches: [B] branches of one question, exactly one for each order and option.
        branch_scores: [B] the score of each.

    Returns:
        For every order, in order of appearance, [O] float64 scores indexed by the question's own options.

    Raises:
        ValueError: If an order lacks an option or has one twice, or the two arguments differ in length.
    """
    found: dict[tuple[int, ...], dict[int, float]] = {}
    for branch, score in zip(branches, branch_scores, strict=True):
        options = found.setdefault(branch.order, {})
        if branch.option in options:
            raise ValueError(
                f"expected one branch an option; got two of option {branch.option} in {branch.order}"
            )
        options[branch.option] = float(score)
    num_options = 1 + max(branch.option for branch in branches)
    for order, options in found.items():
        if len(options) != num_options:
            raise ValueError(f"expected {num_options} options in order {order}; got {sorted(options)}")
    return {
        order: np.array([options[index] for index in range(num_options)]) for order, options in found.items()
    }


def mean_by_place(scores_per_order: Mapping[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """[O] mean over the orders of log softmax(scores_r)[the option that stands at each place].

    Args:
        scores_per_order: as in `unrotate_and_average`, with keys that are no empty ones.
    """
    return np.mean([log_softmax(scores)[list(order)] for order, scores in scores_per_order.items()], axis=0)


def unrotate_and_average(
    scores_per_order: Mapping[tuple[int, ...], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Averages the options' probabilities over the orders in which they were shown.

    p[o] = mean over r of softmax(scores_r)[o].

    Source: the average of un-rotated probabilities over cyclic permutations in Zheng et al., "Large Language
    Models Are Not Robust Multiple Choice Selectors" (ICLR 2024).

    Args:
        scores_per_order: R entries. Key: option indexes as shown (empty when the prompt shows no list).
            Value: [O] log-probability scores indexed by the question's own options, not by place.

    Returns:
        (scores, probabilities), each [O] float64: probabilities as above, scores their logarithm.

    Raises:
        ValueError: If there is no order, a key is no permutation of the options, the arrays differ in length,
            or an order's scores have no softmax.
    """
    if not scores_per_order:
        raise ValueError("expected the scores of at least one order; got none")
    sizes = {np.size(scores) for scores in scores_per_order.values()}
    if len(sizes) > 1:
        raise ValueError(f"expected as many scores in every order; got {sorted(sizes)}")
    num_options = sizes.pop()
    for order in scores_per_order:
        if order and sorted(order) != list(range(num_options)):
            raise ValueError(f"expected a permutation of {num_options} options; got {order}")
    scores = average_probabilities(scores_per_order.values())
    return scores, np.exp(scores)
