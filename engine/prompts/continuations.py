"""Turns (prefix, continuation) pairs into Prompts, as lm-evaluation-harness cuts them. Knows no models.

Source of the rule: lm_eval.api.model.TemplateLM._encode_pair, version 0.4: spaces that end the prefix move
to the continuation, prefix + continuation is tokenized as one text, and the continuation's tokens are those
after as many as the prefix alone becomes. An empty prefix is the tokenizer's BOS, or EOS where it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from strata.engine.model_files.library_errors import one_line
from strata.engine.model_files.tokenizer_files import TOKENIZER_FILE
from strata.engine.prompts.tokenizer import CANNOT_TOKENIZE
from strata.engine.types import Branch, InputError, Prompt, Question, Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_continuations(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, *, window: int | None
) -> list[Prompt]:
    """One prompt of one branch a pair; question ids are the pairs' numbers.

    Args:
        pairs: (prefix, continuation) texts.
        tokenizer: of the model; its special tokens are added as it does by itself.
        window: longest pair in tokens, its last predicted token included; None sets no limit.

    Raises:
        InputError: a continuation that becomes no token, or a pair longer than the window.
    """
    return [
        _render(number, *encode_pair(prefix, continuation, tokenizer), window)
        for number, (prefix, continuation) in enumerate(pairs)
    ]


def encode_pair(
    prefix: str, continuation: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Token ids of the prefix and of the continuation.

    Raises:
        InputError: an empty prefix, and a tokenizer without BOS and EOS; or a text that it cannot tokenize.
    """
    with one_line(Path(tokenizer.name_or_path) / TOKENIZER_FILE, CANNOT_TOKENIZE):
        return _encode_pair(prefix, continuation, tokenizer)


def _encode_pair(
    prefix: str, continuation: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    if not prefix:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if not isinstance(start, int):
            raise InputError(f"continuation {continuation!r}: an empty prefix, and no BOS or EOS token")
        ids = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        return [start], list(ids[1:] if ids and ids[0] == start else ids)
    num_spaces = len(prefix) - len(prefix.rstrip())
    if num_spaces:
        prefix, continuation = prefix[:-num_spaces], prefix[-num_spaces:] + continuation
    whole, alone = tokenizer(prefix + continuation)["input_ids"], tokenizer(prefix)["input_ids"]
    return list(whole[: len(alone)]), list(whole[len(alone) :])


def _render(number: int, prefix: list[int], continuation: list[int], window: int | None) -> Prompt:
    if not continuation:
        raise InputError(f"pair {number}: the continuation becomes no token; expected at least one")
    if not prefix:
        raise InputError(f"pair {number}: the prefix becomes no token; expected at least one before it")
    num_tokens = len(prefix) + len(continuation)
    if window is not None and num_tokens > window:
        raise InputError(f"pair {number}: {num_tokens} tokens; the model's window is {window}")
    targets = tuple(
        Target(position=len(prefix) + place, token_id=token) for place, token in enumerate(continuation)
    )
    ids = np.array(prefix + continuation[:-1], np.int32)
    branch = Branch(option=0, order=(), label=None, token_ids=ids, text="", targets=targets)
    return Prompt(question=Question(id=str(number), prompt="", options=("",)), branches=(branch,))
