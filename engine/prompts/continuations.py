"""Pairs of texts, a prefix and its continuation, as tokens and as Prompts. Knows no models and no heads.

Source of the rule: lm_eval.api.model.TemplateLM._encode_pair, version 0.4.13: white space that ends the
prefix moves to the continuation, prefix + continuation is tokenized as one text, and the continuation's
tokens are those after as many as the prefix alone becomes. So a space that is a token of its own, as before
a digit, is the continuation's. An empty prefix is the tokenizer's BOS, or EOS where it has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.engine.json_files import shown
from strata.engine.prompts.tokenizer import JointTokenizer, Tokens
from strata.engine.types import Branch, InputError, Prompt, Question, Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_ID = np.iinfo(np.int32).max


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPair:
    """`tokens` of a text of which the first `num_prefix` are the prefix's.

    None are where the prefix is empty and the tokenizer has neither BOS nor EOS.
    """

    tokens: Tokens
    num_prefix: int


def encode_pairs(texts: Sequence[tuple[str, int]], tokenizer: JointTokenizer) -> list[EncodedPair]:
    """Tokenizes prefixes with their continuations; prefixes that are equal, once.

    Args:
        texts: each a whole text and how many of its characters, without white space at their end, are the
            prefix.
        tokenizer: adds the special tokens that the model's own adds at the beginning.
    """
    prefixes = list(dict.fromkeys(text[:boundary] for text, boundary in texts))
    lengths = dict(zip(prefixes, map(len, tokenizer.encode(prefixes)), strict=True))
    wholes = tokenizer.encode([text for text, _ in texts])
    return [
        _split(tokens, lengths[text[:boundary]], tokenizer.start_id)
        for (text, boundary), tokens in zip(texts, wholes, strict=True)
    ]


def _split(tokens: Tokens, num_prefix: int, start_id: int | None) -> EncodedPair:
    if num_prefix or start_id is None:
        return EncodedPair(tokens=tokens, num_prefix=num_prefix)
    begun = len(tokens) and tokens.ids[0] == start_id
    return EncodedPair(tokens=tokens if begun else tokens.after(start_id), num_prefix=1)


def render_continuations(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, *, window: int | None
) -> list[Prompt]:
    """One prompt of one branch a pair; question ids are the pairs' numbers.

    Args:
        pairs: (prefix, continuation) texts.
        tokenizer: of the model; its special tokens are added as it does by itself, but none at the end.
        window: most tokens that are computed of a pair, all but its last; None sets no limit.

    Raises:
        InputError: no pairs of texts, a continuation that becomes no token, a prefix that does and no BOS or
            EOS, or a pair longer than the window.
    """
    checked = [(_text(number, prefix), _text(number, rest)) for number, prefix, rest in _numbered(pairs)]
    texts = [(prefix + continuation, len(prefix.rstrip())) for prefix, continuation in checked]
    encoded = encode_pairs(texts, JointTokenizer(tokenizer))
    for number, pair in enumerate(encoded):
        if not pair.num_prefix:
            raise InputError(f"pair {number}: the prefix becomes no token, and there is no BOS or EOS token")
    return [
        _build_prompt(number, pair.tokens.ids, pair.num_prefix, window) for number, pair in enumerate(encoded)
    ]


def render_token_continuations(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, window: int | None
) -> list[Prompt]:
    """The same of pairs that are token ids already, to which nothing is added.

    Raises:
        InputError: no pairs of token ids, a prefix or a continuation without a token, or a pair longer than
            the window.
    """
    prompts = []
    for number, prefix, continuation in _numbered(pairs):
        ids = np.concatenate([_token_ids(number, prefix), _token_ids(number, continuation)])
        if not len(prefix):
            raise InputError(f"pair {number}: the prefix has no token; expected at least one")
        prompts.append(_build_prompt(number, ids, len(prefix), window))
    return prompts


def _numbered(pairs: Iterable[Sequence[Any]]) -> Iterator[tuple[int, Any, Any]]:
    """Number, prefix and continuation of every pair."""
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise InputError(f"pairs: {shown(pairs)}; expected a list of (prefix, continuation)")
    for number, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputError(f"pair {number}: {shown(pair)}; expected (prefix, continuation)")
        yield number, *pair


def _text(number: int, text: object) -> str:
    if not isinstance(text, str):
        raise InputError(f"pair {number}: {shown(text)}; expected a text")
    return text


def _token_ids(number: int, ids: object) -> np.ndarray:
    """[n] int32."""
    try:
        given = np.asarray(ids)
    except (ValueError, OverflowError):
        given = np.array(None)
    if given.shape == (0,):
        return np.empty(0, np.int32)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InputError(f"pair {number}: {shown(ids)}; expected a list of token ids, whole numbers")
    if given.min() < 0 or given.max() > LARGEST_ID:
        wrong = given.min() if given.min() < 0 else given.max()
        raise InputError(f"pair {number}: token id {wrong}; expected none below 0 or above {LARGEST_ID}")
    return given.astype(np.int32)


def _build_prompt(number: int, ids: np.ndarray, num_prefix: int, window: int | None) -> Prompt:
    if num_prefix >= len(ids):
        raise InputError(f"pair {number}: the continuation becomes no token; expected at least one")
    if window is not None and len(ids) - 1 > window:
        raise InputError(f"pair {number}: {len(ids)} tokens; the model's window is {window}")
    targets = tuple(Target(position=place, token_id=int(ids[place])) for place in range(num_prefix, len(ids)))
    token_ids = np.ascontiguousarray(ids[:-1])
    branch = Branch(option=0, order=(), label=None, token_ids=token_ids, text="", targets=targets)
    return Prompt(question=Question(id=str(number), prompt="", options=("",)), branches=(branch,))
