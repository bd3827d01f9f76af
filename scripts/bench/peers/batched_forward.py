"""Scores a question with a transformers model whose weights come and go through hooks: two recipes.

Knows no peer. Legend: P prefix tokens, L tokens of an option, O options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from strata.scripts.bench.peers.exchange import answer_request, peer_parser, read_job, warm_up_question
from strata.scripts.bench.workloads.baselines import (
    BaselineRun,
    Forward,
    cached_logits,
    label_difference,
    row_logits,
    time_questions,
)
from strata.scripts.bench.workloads.synthetic_questions import SyntheticQuestion, whole_rows


def score_questions(
    model: Forward, questions: Sequence[SyntheticQuestion], *, share_prefix: bool
) -> BaselineRun:
    """Times each question, after one untimed call on a few tokens.

    Args:
        model: Computes on the CPU, wherever its weights claim to be.
        questions: The options of a question must be equally long, for nothing is padded here.
        share_prefix: False: the O options as one batch of [O, P + L] tokens, every weight read once. True:
            the prefix into a DynamicCache, then the options as [O, L] on copies of it; weights read twice.

    Raises:
        ValueError: The options of a question differ in length.
    """
    import torch
    from transformers import DynamicCache

    def score(question: SyntheticQuestion) -> np.ndarray:
        if share_prefix:
            return label_difference(cached_logits(model, DynamicCache(), question, "cpu"))
        return label_difference(row_logits(model, whole_rows(question), "cpu"))

    with torch.inference_mode():
        score(warm_up_question(questions[0]))
        return time_questions(questions, score)


def answer_command_line(
    name: str, measure: Callable[..., BaselineRun], *, missing: str | None, packages: Sequence[str]
) -> int:
    """Answers one request on the command line, with the flags of all peers and the choice of recipe.

    Args:
        name: The peer's module in this folder.
        measure: Called as `measure(job, share_prefix=)`.
        missing: Why the peer cannot run here, or None.
        packages: Distributions whose versions are told.
    """
    parser = peer_parser(f"strata.scripts.bench.peers.{name}")
    parser.add_argument("--share-prefix", action="store_true", help="a KV cache of the prefix, read twice")
    given = parser.parse_args()
    return answer_request(
        lambda: measure(read_job(given), share_prefix=given.share_prefix), missing=missing, packages=packages
    )
