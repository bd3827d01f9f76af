"""Questions of random token ids, for benches. Knows no model beyond the size of its vocabulary.

Legend: P prefix tokens, L tokens of an option.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from strata.scripts.bench.configs import QuestionSize

NUM_SPECIAL_TOKENS = 3
LABEL_TOKENS = (3, 4)
"""A score is the first one's logit minus the second's, after an option's last token."""


class SyntheticQuestion(NamedTuple):
    """Token ids of one question: the shared prefix [P] int64, and its options, [L] int64 each."""

    prefix_ids: np.ndarray
    option_ids: tuple[np.ndarray, ...]


def synthetic_questions(
    num: int, size: QuestionSize, *, vocab_size: int, seed: int = 0
) -> list[SyntheticQuestion]:
    """Questions of random token ids (never 0 to 2, which are special in Llama).

    No two questions, and no two options of a question, start with the same token, so that the trie of all of
    them has exactly num * size.num_tokens nodes.

    Args:
        num: How many.
        size: How large each is.
        vocab_size: Ids are below it.
        seed: The same seed gives the same questions.

    Raises:
        ValueError: The vocabulary is too small for that.
    """
    if vocab_size - NUM_SPECIAL_TOKENS < max(num, size.num_options):
        raise ValueError(
            f"vocab_size {vocab_size}: expected at least {max(num, size.num_options) + NUM_SPECIAL_TOKENS}, "
            f"for different first tokens of {num} questions and {size.num_options} options"
        )
    generator = np.random.default_rng(seed)

    def draw(num_rows: int, num_tokens: int) -> np.ndarray:
        rows = generator.integers(NUM_SPECIAL_TOKENS, vocab_size, (num_rows, num_tokens))
        first = generator.permutation(vocab_size - NUM_SPECIAL_TOKENS)[:num_rows] + NUM_SPECIAL_TOKENS
        rows[:, 0] = first
        return rows

    prefixes = draw(num, size.prefix_tokens)
    return [
        SyntheticQuestion(prefix, tuple(draw(size.num_options, size.option_tokens))) for prefix in prefixes
    ]


def whole_rows(question: SyntheticQuestion) -> list[np.ndarray]:
    """Each option behind the prefix, [P + L] int64."""
    return [np.concatenate([question.prefix_ids, ids]) for ids in question.option_ids]
