"""The two ways to beat: transformers' forward an option, a KV cache a question. Knows nothing of the engine.

Legend: P prefix tokens, L tokens of an option, O options, Q questions, V vocabulary. An option's score is the
logit of one label token minus that of another, after the option's last token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from strata.scripts.bench.record import Stopwatch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NUM_SPECIAL_TOKENS = 3


class SyntheticQuestion(NamedTuple):
    """Token ids of one question: the shared prefix [P] int64, and its options, [L] int64 each."""

    prefix_ids: np.ndarray
    option_ids: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class BaselineRun:
    """What a baseline gave: seconds of each question, in order, and scores [Q, O] float32."""

    question_s: tuple[float, ...]
    scores: np.ndarray

    @property
    def median_s(self) -> float:
        """Median seconds a question."""
        return median(self.question_s)


def synthetic_questions(
    num: int,
    *,
    prefix_tokens: int = 1200,
    option_tokens: int = 45,
    num_options: int = 5,
    vocab_size: int,
    seed: int = 0,
) -> list[SyntheticQuestion]:
    """Questions of random token ids (never 0 to 2, which are special in Llama).

    No two questions, and no two options of a question, start with the same token, so that the trie of all of
    them has exactly num * (prefix_tokens + num_options * option_tokens) nodes.

    Raises:
        ValueError: The vocabulary is too small for that.
    """
    if vocab_size - NUM_SPECIAL_TOKENS < max(num, num_options):
        raise ValueError(
            f"vocab_size {vocab_size}: expected at least {max(num, num_options) + NUM_SPECIAL_TOKENS}, "
            f"for different first tokens of {num} questions and {num_options} options"
        )
    generator = np.random.default_rng(seed)

    def draw(num_rows: int, num_tokens: int) -> np.ndarray:
        rows = generator.integers(NUM_SPECIAL_TOKENS, vocab_size, (num_rows, num_tokens))
        first = generator.permutation(vocab_size - NUM_SPECIAL_TOKENS)[:num_rows] + NUM_SPECIAL_TOKENS
        rows[:, 0] = first
        return rows

    prefixes = draw(num, prefix_tokens)
    return [SyntheticQuestion(prefix, tuple(draw(num_options, option_tokens))) for prefix in prefixes]


def load_hf_model(checkpoint: Path, *, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """The whole model in memory, as transformers loads it, with its SDPA attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa")
    # transformers wraps Module.to in a decorator whose type takes no arguments.
    model.to(device)  # type: ignore[arg-type]
    return model.eval()


def hf_naive(
    model: PreTrainedModel,
    questions: Iterable[SyntheticQuestion],
    *,
    label_token_ids: tuple[int, int] = (3, 4),
) -> BaselineRun:
    """Runs every option alone behind its own copy of the prefix, in batches of one.

    Args:
        model: A causal language model of transformers.
        questions: What to score.
        label_token_ids: The score is the first one's logit minus the second's.
    """

    def score(question: SyntheticQuestion) -> torch.Tensor:
        return _cat(
            [_score_alone(model, question.prefix_ids, ids, label_token_ids) for ids in question.option_ids]
        )

    return _run_questions(model, questions, score)


def hf_dynamic_cache(
    model: PreTrainedModel,
    questions: Iterable[SyntheticQuestion],
    *,
    label_token_ids: tuple[int, int] = (3, 4),
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

    def score(question: SyntheticQuestion) -> torch.Tensor:
        return _score_on_cache(model, question, label_token_ids)

    return _run_questions(model, questions, score)


def _score_alone(
    model: PreTrainedModel, prefix_ids: np.ndarray, option_ids: np.ndarray, label_token_ids: tuple[int, int]
) -> torch.Tensor:
    input_ids = _to_batch(model, [np.concatenate([prefix_ids, option_ids])])
    logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits
    return _label_difference(logits, label_token_ids)


def _score_on_cache(
    model: PreTrainedModel, question: SyntheticQuestion, label_token_ids: tuple[int, int]
) -> torch.Tensor:
    from transformers import DynamicCache

    lengths = {len(ids) for ids in question.option_ids}
    if len(lengths) != 1:
        raise ValueError(f"options of {sorted(lengths)} tokens: expected all of one length")
    cache = DynamicCache(config=model.config)
    prefix = _to_batch(model, [question.prefix_ids])
    model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(question.option_ids))
    options = _to_batch(model, list(question.option_ids))
    logits = model(input_ids=options, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return _label_difference(logits, label_token_ids)


def _label_difference(logits_O1V: torch.Tensor, label_token_ids: tuple[int, int]) -> torch.Tensor:
    logits_OV = logits_O1V[:, -1].float()
    return logits_OV[:, label_token_ids[0]] - logits_OV[:, label_token_ids[1]]


def _to_batch(model: PreTrainedModel, rows: list[np.ndarray]) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.stack(rows).astype(np.int64)).to(model.device)


def _cat(parts: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat(parts)


def _run_questions(
    model: PreTrainedModel,
    questions: Iterable[SyntheticQuestion],
    score: Callable[[SyntheticQuestion], torch.Tensor],
) -> BaselineRun:
    import torch

    seconds: list[float] = []
    scores: list[np.ndarray] = []
    with torch.inference_mode():
        for question in questions:
            with Stopwatch(model.device) as watch:
                scores_O = score(question)
            seconds.append(watch.seconds)
            scores.append(scores_O.cpu().numpy())
    return BaselineRun(question_s=tuple(seconds), scores=np.stack(scores))
