"""How good the orders of a run are, where answers are known, beside what no model at all would reach.

Source of MAP@3: Kaggle LLM Science Exam, evaluation page. With one right answer a question, average precision
at k is 1/rank when the answer's rank is at most k, else 0; MAP@k is its mean over the questions.
"""

from __future__ import annotations

from collections.abc import Sequence

from strata.engine.types import Question, QuestionScores


def map_at_k(orders: Sequence[Sequence[int]], answers: Sequence[int], k: int = 3) -> float:
    """Mean over questions of 1/rank of the answer, 0 when it is not among the first k.

    Args:
        orders: [Q] option indexes, best first; an order may be shorter than the list of options.
        answers: [Q] index of the right option.
        k: How many options of an order count.

    Returns:
        A fraction in 0..1.

    Raises:
        ValueError: If there is no question, or orders and answers differ in number.
    """
    if not answers or len(orders) != len(answers):
        raise ValueError(f"expected one answer an order, at least one; got {len(orders)} and {len(answers)}")
    pairs = zip(orders, answers, strict=True)
    return sum(reciprocal_rank(order[:k], answer) for order, answer in pairs) / len(answers)


def reciprocal_rank(order: Sequence[int], answer: int) -> float:
    """1/rank of the answer in the order, ranks counted from 1; 0 when it is not there."""
    return 1 / (order.index(answer) + 1) if answer in order else 0.0


def accuracy(orders: Sequence[Sequence[int]], answers: Sequence[int]) -> float:
    """Fraction of questions whose best option is the answer, which is MAP@1; raises as `map_at_k` does."""
    return map_at_k(orders, answers, k=1)


def longest_option_order(question: Question) -> tuple[int, ...]:
    """Option indexes, longest text (in characters) first; ties keep the question's own order."""
    return tuple(sorted(range(len(question.options)), key=lambda index: -len(question.options[index])))


def uniform_map_at_3(num_options: Sequence[int]) -> float:
    """Expected MAP@3 of guessing at random: the answer has rank r with probability 1/O, r = 1..O.

    So a question contributes (1 + 1/2 + 1/3) / O, with only the first two terms when O = 2: 0.367 for five
    options.

    Args:
        num_options: [Q] options of each question, each at least 1.

    Returns:
        The exact expectation, a fraction in 0..1.

    Raises:
        ValueError: If there is no question.
    """
    if not num_options:
        raise ValueError("expected the number of options of at least one question; got none")
    expected = [sum(1 / rank for rank in range(1, min(3, num) + 1)) / num for num in num_options]
    return sum(expected) / len(expected)


def evaluate(scores: Sequence[QuestionScores]) -> dict | None:
    """Metrics over the questions whose answer is known, beside two heuristics on the same questions.

    Args:
        scores: What a run says of its questions.

    Returns:
        num_answered, map_at_3, accuracy and heuristics {uniform_map_at_3, longest_option_map_at_3}; None when
        no answer is known.
    """
    answered = [(row, row.question.answer) for row in scores if row.question.answer is not None]
    if not answered:
        return None
    answers = [answer for _, answer in answered]
    orders = [row.order for row, _ in answered]
    return {
        "num_answered": len(answers),
        "map_at_3": map_at_k(orders, answers),
        "accuracy": accuracy(orders, answers),
        "heuristics": {
            "uniform_map_at_3": uniform_map_at_3([len(row.question.options) for row, _ in answered]),
            "longest_option_map_at_3": map_at_k(
                [longest_option_order(row.question) for row, _ in answered], answers
            ),
        },
    }
