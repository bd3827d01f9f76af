"""Pairs of a query and a document as tokens, as sentence-transformers makes them. Knows no model.

Without a chat template, a pair is what the tokenizer makes of two texts, the longer one cut. With one, it is
a conversation of the roles `query` and `document`, a prompt being the system message; what is too long is cut
at its end, and the tokens that the template puts there are written back over the last ones.
Source: sentence_transformers.base.modules.transformer.Transformer.preprocess, version 6.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2.exceptions import TemplateError

from strata.engine.json_files import shown
from strata.engine.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIR_ROLES = ("query", "document")
FILLERS = ("0", "1 2 3 4")
PROBES = (("alpha", "bravo"), ("charlie", "bravo"), ("alpha", "foxtrot"))
"""A pair, and one that differs in each part: what a template shows of it has to differ, too."""
STRUCTURED_PATTERNS = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")
"""A chat template with one of these wants contents as lists of parts."""
CUT = "longest_first"

Pair = tuple[str, str]


def is_single_pair(inputs: Any) -> bool:
    """Whether inputs are one pair, and not a list of pairs."""
    if isinstance(inputs, (list, tuple)):
        return len(inputs) > 0 and not isinstance(inputs[0], (list, tuple, np.ndarray))
    return isinstance(inputs, str) or (isinstance(inputs, np.ndarray) and inputs.size > 0 and inputs.ndim < 2)


def check_pairs(inputs: Any) -> list[Pair]:
    """Inputs as pairs of texts.

    Raises:
        InputError: one is something else, with its place.
    """
    if not isinstance(inputs, Iterable):
        raise InputError(f"inputs: {shown(inputs)}; expected a list of pairs of texts")
    pairs = []
    for place, given in enumerate(inputs):
        pair = tuple(given) if isinstance(given, (list, tuple, np.ndarray)) else ()
        if len(pair) != 2 or not all(is_text(text) for text in pair):
            raise InputError(f"inputs[{place}]: {given!r}; expected a pair of texts, a query and a document")
        pairs.append((str(pair[0]), str(pair[1])))
    return pairs


def is_text(text: object) -> bool:
    """Whether it is a text that UTF-8 can hold, as tokenizers want it: without half of a surrogate pair."""
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class PairTokenizer:
    """Makes tokens of pairs.

    Args:
        tokenizer: of the model; its `model_max_length` is the longest pair.
        uses_chat: whether pairs become conversations; None where the tokenizer has a chat template.

    Raises:
        InputError: a chat template that loses the query or the document.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, uses_chat: bool | None = None) -> None:
        self._tokenizer = tokenizer
        self.uses_chat = bool(tokenizer.chat_template) if uses_chat is None else uses_chat
        self._ending = lru_cache(16)(self._find_ending)
        if self.uses_chat:
            self._check_roles()

    def encode(self, pairs: Sequence[Pair], prompt: str | None) -> list[dict[str, list[int]]]:
        """What the tokenizer gives of each pair, `input_ids` among it; nothing is padded.

        Args:
            pairs: (query, document).
            prompt: text before every query, or a system message.
        """
        # Not every tokenizer takes an empty list.
        if self.uses_chat or not pairs:
            return [self._encode_chat(pair, prompt) for pair in pairs]
        queries = [(prompt or "") + query for query, _ in pairs]
        encoded = self._tokenizer(queries, [document for _, document in pairs], truncation=CUT)
        return [{name: encoded[name][place] for name in encoded} for place in range(len(pairs))]

    def _encode_chat(self, pair: Pair, prompt: str | None) -> dict[str, list[int]]:
        encoded = self._write_chat(pair, prompt, tokenize=True, truncation=CUT, return_dict=True)
        ids = list(encoded["input_ids"])
        if len(ids) >= self._tokenizer.model_max_length and (ending := self._ending(prompt)[-len(ids) :]):
            ids[-len(ending) :] = ending
        return {**encoded, "input_ids": ids}

    def _find_ending(self, prompt: str | None) -> tuple[int, ...]:
        """The tokens that conversations end with, whatever is said in them."""
        one, other = (
            self._write_chat((filler, filler), prompt, tokenize=True, return_dict=True)["input_ids"]
            for filler in FILLERS
        )
        lengths = range(min(len(one), len(other)) + 1)
        longest = max(
            length for length in lengths if one[len(one) - length :] == other[len(other) - length :]
        )
        return tuple(one[len(one) - longest :]) if longest < lengths[-1] else ()

    def _write_chat(self, pair: Pair, prompt: str | None, **settings: Any) -> Any:
        messages = [("system", prompt)] if prompt else []
        messages += zip(PAIR_ROLES, pair, strict=True)
        return self._tokenizer.apply_chat_template(
            [{"role": role, "content": self._content(text)} for role, text in messages], **settings
        )

    def _content(self, text: str | None) -> Any:
        template = self._tokenizer.chat_template
        is_structured = not isinstance(template, str) or any(word in template for word in STRUCTURED_PATTERNS)
        return [{"type": "text", "text": text}] if is_structured else text

    def _check_roles(self) -> None:
        where = f"{self._tokenizer.name_or_path}: the chat template"
        try:
            base, *varied = [self._write_chat(pair, None, tokenize=False) for pair in PROBES]
        except (TemplateError, TypeError, ValueError) as error:
            told = str(error).splitlines()[0]
            raise InputError(f"{where} refuses the roles query and document: {told}") from None
        for role, written in zip(PAIR_ROLES, varied, strict=True):
            if written == base:
                raise InputError(f"{where} does not show what the {role} says; expected one for rerankers")
