"""Whether a run keeps answering one position, whatever is asked: told by its own answers, without any truth.

Source of the bound: Hoeffding, "Probability Inequalities for Sums of Bounded Random Variables" (1963),
theorem 1: k or more hits of n independent draws of mean probability p have probability of at most
exp(-n KL(k/n || p)), also where the draws' probabilities differ, as with differing numbers of options.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from strata.engine.types import LETTERS, QuestionScores

MAX_PROBABILITY = 1e-6
"""Of as many answers at one position, were all positions equally likely: below this it is no accident."""
MIN_EXCESS = 2.0
"""How many times its share a position must have: a preference that small in many questions harms little."""


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """A position that is answered far above its share.

    Attributes:
        letter: of the position.
        num_answers: questions whose best option stands there.
        num_questions: questions that have the position.
        expected: questions that would have it at its share: one over the number of options, or the share of
            known answers there, whichever is larger.
    """

    letter: str
    num_answers: int
    num_questions: int
    expected: float


def find_collapse(scores: Sequence[QuestionScores]) -> Collapse | None:
    """The position that is answered most, where that is no accident; None where it may be."""
    if not scores:
        return None
    position, num_answers = Counter(row.order[0] for row in scores).most_common(1)[0]
    asked = [row for row in scores if position < len(row.question.options)]
    expected = max(
        sum(1 / len(row.question.options) for row in asked), sum(_known_share(row, position) for row in asked)
    )
    share, usual = num_answers / len(asked), expected / len(asked)
    is_accident = share <= usual or math.exp(-len(asked) * _divergence(share, usual)) >= MAX_PROBABILITY
    if is_accident or share <= MIN_EXCESS * usual:
        return None
    return Collapse(
        letter=LETTERS[position], num_answers=num_answers, num_questions=len(asked), expected=expected
    )


def describe_collapse(collapse: Collapse, head: str) -> str:
    """What to say of it, and what to do about it."""
    remedy = "--debias rotate" if head == "letters" else "--head letters --debias rotate"
    return (
        f"head {head} puts option {collapse.letter} first in {collapse.num_answers} of "
        f"{collapse.num_questions} questions, where about {collapse.expected:.0f} are expected: "
        f"it may go by the position; expected {remedy}"
    )


def _known_share(row: QuestionScores, position: int) -> float:
    """Of a question whose answer is known, 1 or 0; else its uniform share."""
    answer = row.question.answer
    return 1 / len(row.question.options) if answer is None else float(answer == position)


def _divergence(share: float, usual: float) -> float:
    """Kullback-Leibler divergence of two coins in nats, for share > usual > 0."""
    rest = 0.0 if share == 1 else (1 - share) * math.log((1 - share) / (1 - usual))
    return share * math.log(share / usual) + rest
