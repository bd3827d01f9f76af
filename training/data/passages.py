"""Passages of text as examples of next-token prediction: tokenized, cut into blocks. Knows no file format.

A block never crosses from one passage into another, since examples are packed without padding anyway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from strata.engine.prompts.tokenizer import JointTokenizer
from strata.engine.types import Branch, InputError, Prompt, Question, Target
from strata.training.config import TrainConfig
from strata.training.data.batch_order import hold_out
from strata.training.data.training_set import TrainingSet
from strata.training.types import Example, Reader, Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Passages tokenized together.
_BATCH_PASSAGES = 64


class LanguageReader(Reader, Protocol):
    """A reader that can learn from passages."""

    tokenizer: PreTrainedTokenizerBase
    """A fast tokenizer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Token ids [L + 1] int32 a block: L are computed and the last L predicted; L is at least 1."""

    token_ids: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.token_ids)

    def read(self, renderer: Renderer, indices: Sequence[int], *, epoch: int | None) -> list[Example]:
        """The blocks of these indices, the same in every epoch."""
        return [block_example(index, self.token_ids[index]) for index in indices]

    def fingerprint(self) -> str:
        """A digest of all tokens, in order."""
        digest = hashlib.sha256()
        for ids in self.token_ids:
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(ids.astype("<i4").tobytes())
        return digest.hexdigest()


def block_example(index: int, token_ids: np.ndarray) -> Example:
    """An example whose targets are all tokens of a block [L + 1] but the first."""
    targets = tuple(
        Target(position=place, token_id=int(token_ids[place])) for place in range(1, len(token_ids))
    )
    branch = Branch(option=0, order=(), label=None, token_ids=token_ids[:-1], text="", targets=targets)
    question = Question(id=str(index), prompt="", options=("",), row=index + 1)
    return Example(prompt=Prompt(question=question, branches=(branch,)), labels=np.ones(1))


def cut_passage(token_ids: np.ndarray, block_tokens: int) -> list[np.ndarray]:
    """Cuts a passage [P] into blocks of nearly equal length that compute at most `block_tokens` tokens.

    Each block begins with the last token of the one before, so that every token but the first is predicted
    once. A passage of fewer than two tokens gives none.
    """
    num_predicted = len(token_ids) - 1
    if num_predicted < 1:
        return []
    num_blocks = -(-num_predicted // block_tokens)
    bounds = np.linspace(0, num_predicted, num_blocks + 1).round().astype(int)
    return [token_ids[first : last + 1] for first, last in pairwise(bounds)]


def tokenize_passages(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, block_tokens: int
) -> Iterator[list[np.ndarray]]:
    """The blocks of each passage, special tokens as the tokenizer puts them at its start."""
    joint_tokenizer = JointTokenizer(tokenizer)
    rest = iter(texts)
    while batch := list(islice(rest, _BATCH_PASSAGES)):
        for tokens in joint_tokenizer.encode(batch):
            yield cut_passage(tokens.ids, block_tokens)


def read_passages(
    config: TrainConfig, texts: Iterable[str], valid_texts: Iterable[str] | None, reader: LanguageReader
) -> TrainingSet:
    """Tokenizes the passages of a run of task lm; whole passages are held out.

    Args:
        config: of task lm.
        texts: passages, read once; all their tokens are kept in memory (4 bytes each).
        valid_texts: those of --valid, None without.
        reader: whose tokenizer is used.

    Raises:
        InputError: no passage has two tokens, or there are too few to hold any out.
    """
    passages = _tokenize(islice(texts, config.limit), "--passages", config, reader)
    if valid_texts is not None:
        valid = _tokenize(valid_texts, "--valid", config, reader)
        return TrainingSet(train=_join(passages), valid=_join(valid))
    if not config.valid_share:
        return TrainingSet(train=_join(passages))
    if len(passages) < 2:
        raise InputError("--valid-share: there is one passage; expected two or more to split")
    kept, held_out = hold_out(len(passages), config.valid_share, config.seed)
    return TrainingSet(
        train=_join([passages[index] for index in kept]), valid=_join([passages[index] for index in held_out])
    )


def _tokenize(
    texts: Iterable[str], flag: str, config: TrainConfig, reader: LanguageReader
) -> list[list[np.ndarray]]:
    blocks = tokenize_passages(texts, reader.tokenizer, block_tokens=config.block_tokens)
    passages = [passage for passage in blocks if passage]
    if not passages:
        path = config.passages if flag == "--passages" else config.valid
        raise InputError(f"{flag}: {path}: no passage of two tokens or more; expected text to learn from")
    return passages


def _join(passages: Sequence[Sequence[np.ndarray]]) -> Blocks:
    return Blocks(token_ids=[block for blocks in passages for block in blocks])
