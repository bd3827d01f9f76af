"""Scores a question with a transformers model whose weights come and go through hooks: two recipes.

Knows no peer. Legend: P prefix tokens, L tokens of an option, O options, Q questions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from strata.scripts.bench.peers.exchange import answer_request, load_questions, peer_parser, warm_up_question
from strata.scripts.bench.record import Stopwatch
from strata.scripts.bench.workloads.baselines import BaselineRun, SyntheticQuestion

if TYPE_CHECKING:
    import torch

    # Called as a transformers causal language model is.
    Forward = Callable[..., object]


def score_questions(
    model: Forward,
    questions: Sequence[SyntheticQuestion],
    *,
    share_prefix: bool,
    label_token_ids: tuple[int, int] = (3, 4),
) -> BaselineRun:
    """Time each question, after one untimed call on a few tokens.

    Args:
        model: Computes on the CPU, wherever its weights claim to be.
        questions: The options of a question must be equally long, for nothing is padded here.
        share_prefix: False: the O options as one batch of [O, P + L] tokens, every weight read once. True:
            the prefix into a DynamicCache, then the options as [O, L] on copies of it; weights read twice.
        label_token_ids: A score is the first one's logit minus the second's after the option's last token.

    Raises:
        ValueError: The options of a question differ in length.
    """
    import torch

    score = _score_on_cache if share_prefix else _score_as_batch
    seconds: list[float] = []
    scores: list[np.ndarray] = []
    with torch.inference_mode():
        score(model, warm_up_question(questions[0]))
        for question in questions:
            with Stopwatch() as watch:
                logits_OV = score(model, question).float()
            first, second = label_token_ids
            seconds.append(watch.seconds)
            scores.append((logits_OV[:, first] - logits_OV[:, second]).numpy())
    return BaselineRun(question_s=tuple(seconds), scores=np.stack(scores))


def _score_as_batch(model: Forward, question: SyntheticQuestion) -> torch.Tensor:
    rows = [np.concatenate([question.prefix_ids, ids]) for ids in question.option_ids]
    return _last_logits(model(input_ids=_to_batch(rows), use_cache=False, logits_to_keep=1))


def _score_on_cache(model: Forward, question: SyntheticQuestion) -> torch.Tensor:
    from transformers import DynamicCache

    cache = DynamicCache()
    prefix = _to_batch([question.prefix_ids])
    model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(question.option_ids))
    options = _to_batch(question.option_ids)
    return _last_logits(model(input_ids=options, past_key_values=cache, use_cache=True, logits_to_keep=1))


def _last_logits(output: object) -> torch.Tensor:
    return output.logits[:, -1]  # type: ignore[attr-defined]


def _to_batch(rows: Iterable[np.ndarray]) -> torch.Tensor:
    import torch

    rows = list(rows)
    lengths = {len(ids) for ids in rows}
    if len(lengths) != 1:
        raise ValueError(f"options of {sorted(lengths)} tokens: expected all of one length")
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def answer_command_line(
    name: str, measure: Callable[..., BaselineRun], *, missing: str | None, packages: Sequence[str]
) -> int:
    """Answers one request on the command line, with the flags of all peers and the choice of recipe.

    Args:
        name: The peer's module in this folder.
        measure: Called as `measure(checkpoint, questions, work_folder, num_threads=, share_prefix=)`.
        missing: Why the peer cannot run here, or None.
        packages: Distributions whose versions are told.
    """
    parser = peer_parser(f"strata.scripts.bench.peers.{name}")
    parser.add_argument("--share-prefix", action="store_true", help="a KV cache of the prefix, read twice")
    given = parser.parse_args()
    return answer_request(
        lambda: measure(
            given.checkpoint,
            load_questions(given.questions),
            given.work_folder,
            num_threads=given.threads,
            share_prefix=given.share_prefix,
        ),
        missing=missing,
        packages=packages,
    )
