"""Tokenizes whole texts and says which tokens hold which characters; knows nothing of questions.

Texts are never tokenized in pieces: the tokens of a prompt followed by those of its label are in general
not the tokens of the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer

from strata.engine.model_files.library_errors import one_line
from strata.engine.model_files.tokenizer_files import TOKENIZER_FILE, check_tokenizer_files
from strata.engine.prompts.gguf_tokenizer import build_gguf_tokenizer, is_gguf_file
from strata.engine.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Bounds the memory of the tokenizer's own bookkeeping (about 100 bytes a token) and still feeds every core.
_MAX_BATCH_CHARACTERS = 2**21

CANNOT_TOKENIZE = "the tokenizer cannot tokenize a text"


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """A tokenized text of L tokens: `ids`, `starts`, `ends` [L] int32, the latter two in characters.

    Tokens that make up one character (byte fallback) share its span; special tokens have an empty one.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def after(self, token_id: int) -> Tokens:
        """The same behind a special token."""
        return Tokens(
            ids=np.concatenate([[token_id], self.ids]).astype(np.int32),
            starts=np.concatenate([[0], self.starts]).astype(np.int32),
            ends=np.concatenate([[0], self.ends]).astype(np.int32),
        )

    def overlapping(self, start: int, end: int) -> range:
        """Indices of the tokens that hold any character of [start, end), whole or in part."""
        inside = np.flatnonzero((self.ends > start) & (self.starts < end))
        # A range: a token with an empty span between two of them belongs to the text as well.
        return range(inside[0], inside[-1] + 1) if len(inside) else range(0)


class JointTokenizer:
    """Tokenizes like `tokenizer(text)`, special tokens included except those it appends at the end.

    A text that brings the special tokens of the start itself, as chat templates do, does not get them twice.

    Attributes:
        unknown_id: the token of what the vocabulary lacks, if any.
        start_id: BOS, else EOS, else None: what a text without a beginning follows.
        has_brought_start: a text has brought the special tokens of the start itself.
        has_repeated_start: one of them stands somewhere else in a text, too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True) -> None:
        """Copies a fast tokenizer; the given one is left as it is.

        Args:
            tokenizer: of the model.
            add_special_tokens: False for texts that hold all their special tokens, as chat templates write.

        Raises:
            InputError: a tokenizer without a fast (Rust) implementation, which cannot tell character spans.
        """
        if not tokenizer.is_fast:
            raise InputError(
                f"tokenizer {type(tokenizer).__name__} is not a fast one, expected a tokenizer.json"
            )
        self.unknown_id: int | None = tokenizer.unk_token_id
        self._folder = tokenizer.name_or_path
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.start_id: int | None = bos if isinstance(bos, int) else eos if isinstance(eos, int) else None
        self._adds_special_tokens = add_special_tokens
        # Trimmed spans (as in Llama 3) leave white space out, so that a token seems to end before a
        # boundary that it straddles. The ids are the same without.
        whole = tokenizer.backend_tokenizer.to_str().replace('"trim_offsets":true', '"trim_offsets":false')
        self._backend = Tokenizer.from_str(whole)
        self._backend.no_truncation()
        self._backend.no_padding()
        if isinstance(self._backend.model, BPE):
            # tokenizers 0.23 never frees the words that this cache held: 250 bytes of memory a question.
            self._backend.model._resize_cache(0)
        self._backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
        self._num_appended = self._count_appended()
        self._start = self._find_start()
        self.has_brought_start = False
        self.has_repeated_start = False

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenizes each text as a whole.

        Raises:
            InputError: the tokenizer cannot.
        """
        tokens: list[Tokens] = []
        for batch in _batches(texts):
            tokens += [self._convert(encoding) for encoding in self._encode(batch)]
        return tokens

    def _encode(self, texts: list[str]) -> list[Encoding]:
        with one_line(Path(self._folder) / TOKENIZER_FILE, CANNOT_TOKENIZE):
            return self._backend.encode_batch(texts, add_special_tokens=self._adds_special_tokens)

    def _count_appended(self) -> int:
        offsets = self._encode(["a"])[0].offsets
        return next((i for i, (start, end) in enumerate(reversed(offsets)) if end > start), 0)

    def _find_start(self) -> np.ndarray:
        """Ids [P] of the special tokens that are put before a text."""
        encoding = self._encode(["a"])[0]
        num_special = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
        return np.array(encoding.ids[:num_special], dtype=np.int32)

    def _num_doubled(self, ids: np.ndarray) -> int:
        """How many tokens at the start stand there a second time, brought by the text."""
        num_start = len(self._start)
        if not num_start:
            return 0
        brought = np.array_equal(ids[num_start : 2 * num_start], self._start)
        self.has_brought_start |= brought
        expected = 1 + int(brought)
        self.has_repeated_start |= int(np.count_nonzero(ids == self._start[0])) > expected
        return num_start if brought else 0

    def _convert(self, encoding: Encoding) -> Tokens:
        num_tokens = len(encoding) - self._num_appended
        spans = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)[:num_tokens]
        ids = np.array(encoding.ids, dtype=np.int32)[:num_tokens]
        first = self._num_doubled(ids)
        return Tokens(
            ids=ids[first:],
            starts=np.ascontiguousarray(spans[first:, 0]),
            ends=np.ascontiguousarray(spans[first:, 1]),
        )


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        if num_characters >= _MAX_BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer; no code of the folder is run.

    Args:
        path: its directory, or its GGUF file.

    Raises:
        InputError: there is none that transformers can read.
    """
    if is_gguf_file(path):
        return build_gguf_tokenizer(path)
    files = (TOKENIZER_FILE, "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
    if not any((path / name).is_file() for name in files):
        raise InputError(
            f"{path}: no tokenizer; expected tokenizer.json or tokenizer.model beside the weights"
        )
    check_tokenizer_files(path)
    with one_line(path, "transformers cannot read the tokenizer"):
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
