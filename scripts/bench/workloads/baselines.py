"""The two ways to beat: transformers' forward an option, a KV cache a question. Knows nothing of the engine.

Owns how questions are timed and what a score is, for these two and for the peers.
Legend: P prefix tokens, L tokens of an option, O options, Q questions, V vocabulary, R rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.scripts.bench.timing import Stopwatch
from strata.scripts.bench.workloads.synthetic_questions import LABEL_TOKENS, SyntheticQuestion, whole_rows

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

Forward = Callable[..., Any]
"""Called as a causal language model of transformers is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BaselineRun:
    """What a baseline gave: seconds of each question, in order, and scores [Q, O] float32."""

    question_s: tuple[float, ...]
    scores: np.ndarray

    @property
    def median_s(self) -> float:
        """Median seconds a question."""
        return median(self.question_s)


def load_hf_model(checkpoint: Path, *, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """The whole model in memory, as transformers loads it, with its SDPA attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
    )
    # transformers wraps Module.to in a decorator whose type takes no arguments.
    model.to(device)  # type: ignore[arg-type]
    return model.eval()


def hf_naive(
    model: PreTrainedModel,
    questions: Iterable[SyntheticQuestion],
    *,
    label_token_ids: tuple[int, int] = LABEL_TOKENS,
) -> BaselineRun:
    """Runs every option alone behind a new copy of the prefix, in batches of one.

    Args:
        model: A causal language model of transformers.
        questions: What to score.
        label_token_ids: The score is the first one's logit minus the second's.
    """
    import torch

    def score(question: SyntheticQuestion) -> np.ndarray:
        logits = [row_logits(model, [row], model.device) for row in whole_rows(question)]
        return label_difference(torch.cat(logits), label_token_ids)

    with torch.inference_mode():
        return time_questions(questions, score, model.device)


def hf_dynamic_cache(
    model: PreTrainedModel,
    questions: Iterable[SyntheticQuestion],
    *,
    label_token_ids: tuple[int, int] = LABEL_TOKENS,
) -> BaselineRun:
    """Computes each question's prefix once into a DynamicCache, then its options as a batch on copies of it.

    The recipe of the first place in Kaggle's LLM Science Exam. Peak memory: O copies of the prefix's KV cache
    in all layers.

    Args:
        model: A causal language model of transformers.
        questions: What to score; the options of a question must be equally long, for nothing is padded here.
        label_token_ids: The score is the first one's logit minus the second's.

    Raises:
        ValueError: The options of a question differ in length.
    """
    import torch
    from transformers import DynamicCache

    def score(question: SyntheticQuestion) -> np.ndarray:
        cache = DynamicCache(config=model.config)
        return label_difference(cached_logits(model, cache, question, model.device), label_token_ids)

    with torch.inference_mode():
        return time_questions(questions, score, model.device)


def time_questions(
    questions: Iterable[SyntheticQuestion],
    score: Callable[[SyntheticQuestion], np.ndarray],
    device: torch.device | str = "cpu",
) -> BaselineRun:
    """Times each question.

    Args:
        questions: What to score.
        score: Gives the scores [O] float32 of a question.
        device: Whose queued work is waited for.
    """
    seconds: list[float] = []
    scores: list[np.ndarray] = []
    for question in questions:
        with Stopwatch(device) as watch:
            scores.append(score(question))
        seconds.append(watch.seconds)
    return BaselineRun(question_s=tuple(seconds), scores=np.stack(scores))


def row_logits(model: Forward, rows: Sequence[np.ndarray], device: torch.device | str) -> torch.Tensor:
    """Logits [R, V] after the last token of each row, all rows as one batch.

    Raises:
        ValueError: The rows differ in length.
    """
    return model(input_ids=_to_batch(rows, device), use_cache=False, logits_to_keep=1).logits[:, -1]


def cached_logits(
    model: Forward, cache: Cache, question: SyntheticQuestion, device: torch.device | str
) -> torch.Tensor:
    """Logits [O, V] after each option, the prefix computed once into an empty cache that ends with O copies.

    Raises:
        ValueError: The options differ in length.
    """
    prefix, options = _to_batch([question.prefix_ids], device), _to_batch(question.option_ids, device)
    model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(question.option_ids))
    return model(input_ids=options, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def label_difference(logits_OV: torch.Tensor, label_token_ids: tuple[int, int] = LABEL_TOKENS) -> np.ndarray:
    """Scores [O] float32: the logit of one label token minus that of another."""
    first, second = label_token_ids
    logits_OV = logits_OV.float()
    return (logits_OV[:, first] - logits_OV[:, second]).cpu().numpy()


def _to_batch(rows: Sequence[np.ndarray], device: torch.device | str) -> torch.Tensor:
    import torch

    lengths = {len(ids) for ids in rows}
    if len(lengths) != 1:
        raise ValueError(f"options of {sorted(lengths)} tokens: expected all of one length")
    return torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)
