"""Prompts of random tokens that list all options, in the orders of a way to debias. Knows no model.

An order is the prefix, then the options' tokens in that order; all letters are predicted at its last token,
as head letters does. Legend: P prefix tokens, S tokens of the list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.engine.heads.debiasing.debias import Debias, Order
from strata.engine.tree.targets import build_prompt_tree
from strata.engine.types import LETTERS, Branch, Prompt, Question, Target
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.workloads.synthetic_questions import (
    NUM_SPECIAL_TOKENS,
    SyntheticQuestion,
    synthetic_questions,
)


def listed_prompts(num: int, size: QuestionSize, debias: Debias, *, vocab_size: int) -> list[Prompt]:
    """Questions of equal size; no two of them, and no two options of one, begin with the same token.

    Args:
        num: how many.
        size: of each.
        debias: says which orders each is shown in.
        vocab_size: ids are below it.
    """
    drawn = synthetic_questions(num, size, vocab_size=vocab_size)
    questions = [
        Question(id=str(index), prompt="", options=tuple(LETTERS[: size.num_options])) for index in range(num)
    ]
    return [
        Prompt(question=question, branches=tuple(_branches(tokens, orders)))
        for question, tokens, orders in zip(questions, drawn, debias.plan_orders(questions), strict=True)
    ]


def count_tree_tokens(prompts: Sequence[Prompt]) -> int:
    """Tokens that a sweep computes."""
    return build_prompt_tree(prompts).num_tokens


def _branches(question: SyntheticQuestion, orders: Sequence[Order]) -> list[Branch]:
    branches = []
    for order in orders:
        listed = [question.option_ids[option] for option in order]
        token_ids = np.concatenate([question.prefix_ids, *listed]).astype(np.int32)
        for place, option in enumerate(order):
            target = Target(position=len(token_ids), token_id=NUM_SPECIAL_TOKENS + place)
            branches.append(
                Branch(
                    option=option,
                    order=order,
                    label=LETTERS[place],
                    token_ids=token_ids,
                    text="",
                    targets=(target,),
                )
            )
    return branches
