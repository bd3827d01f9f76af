"""Rows that an encoder reads: a question's context, then question and option, one row an option.

    [CLS] context [SEP] prompt option [SEP]

The layout is that of the Kaggle LLM Science Exam's encoder solutions. Only contexts are cut ("only_first"),
each row's for itself. Knows the tokenizer, not the model. Legend: R rows, L tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from strata.engine.encoders.encoder import EncoderShape
from strata.engine.model_files.library_errors import one_line
from strata.engine.model_files.tokenizer_files import TOKENIZER_FILE
from strata.engine.prompts.lost_options import what_is_lost
from strata.engine.prompts.tokenizer import CANNOT_TOKENIZE, read_tokenizer
from strata.engine.types import LETTERS, Branch, InputError, Prompt, Question, RunWarnings, Target

BATCH_QUESTIONS = 64
"""Questions tokenized at a time."""
UNBOUNDED = 10**9


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderPrompt(Prompt):
    """A prompt whose branches are an encoder's rows; `token_types` [L_row] uint8 a row, None without any."""

    token_types: tuple[np.ndarray, ...] | None

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest row."""
        return max(len(branch.token_ids) for branch in self.branches)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(branch.token_ids) for branch in self.branches)


class EncoderTokenizer:
    """Writes questions as rows.

    Args:
        path: the checkpoint with the tokenizer.
        shape: of the encoder.
        max_tokens: the user's bound on a row; None for the window.
        warnings: where odd rows go.

    Raises:
        InputError: no tokenizer, one without padding, a slow one, or a bound that leaves no room.
    """

    def __init__(
        self,
        path: Path,
        shape: EncoderShape,
        max_tokens: int | None,
        warnings: RunWarnings,
        *,
        source: str = "the question file",
    ) -> None:
        self._path = path
        self.tokenizer = read_tokenizer(path)
        self._check(path)
        # What it knows of a window is for one model; ours comes from the config.
        self.tokenizer.model_max_length = UNBOUNDED
        self._shape, self._warnings, self._source = shape, warnings, source
        self._bounds = self._choose_bounds(max_tokens)
        self.limit_tokens = min(bound for _, bound in self._bounds)
        self._num_special = self.tokenizer.num_special_tokens_to_add(pair=True)
        if self.limit_tokens <= self._num_special:
            raise InputError(
                f"--max-tokens {max_tokens}: expected more than a row's {self._num_special} special tokens"
            )

    def _check(self, path: Path) -> None:
        if not self.tokenizer.is_fast:
            raise InputError(f"{path}: a tokenizer without a fast version; expected tokenizer.json")
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"{path}: the tokenizer has no padding token; expected one")

    def _choose_bounds(self, max_tokens: int | None) -> list[tuple[str, int]]:
        """Bounds of a row, and what a row beyond each is called; the window first."""
        window = ("longer than the window", self._shape.window_tokens)
        if max_tokens is None:
            return [window]
        bound = ("longer than --max-tokens", max_tokens)
        if max_tokens <= self._shape.window_tokens or self._shape.has_position_table:
            if max_tokens > self._shape.window_tokens:
                self._warnings.say(
                    f"--max-tokens {max_tokens} exceeds the model's window of {window[1]} tokens, "
                    "which is used"
                )
            return [window, bound]
        return [bound]

    def encode(self, questions: Sequence[Question], source: str | None = None) -> list[EncoderPrompt]:
        """Rows of questions, in order; `source` names the question file in messages.

        Where even without a context a row is longer than the limit it stays whole, as it does with decoders;
        where the model has no positions for it, the question's beginning is cut so that the option is read.
        """
        self._source = source or self._source
        prompts: list[EncoderPrompt] = []
        for first in range(0, len(questions), BATCH_QUESTIONS):
            prompts += self._encode_batch(questions[first : first + BATCH_QUESTIONS])
        return prompts

    def with_texts(self, prompt: EncoderPrompt) -> EncoderPrompt:
        """The prompt with each row's text, special tokens included, for prompts.jsonl."""
        decode = self.tokenizer.decode
        branches = tuple(
            replace(branch, text=str(decode(branch.token_ids.tolist()))) for branch in prompt.branches
        )
        return replace(prompt, branches=branches)

    def _encode_batch(self, questions: Sequence[Question]) -> list[EncoderPrompt]:
        seconds = [[f"{question.prompt} {option}" for option in question.options] for question in questions]
        lengths = iter(self._count([text for texts in seconds for text in texts]))
        contexts = self._count([question.context for question in questions])
        pairs: list[tuple[str, str]] = []
        cut = []
        for question, texts, context_tokens in zip(questions, seconds, contexts, strict=True):
            rooms = [self.limit_tokens - self._num_special - next(lengths) for _ in texts]
            if min(rooms) < 0:
                texts = self._fit(question, texts, rooms)
            cut.append(max(0, context_tokens - max(0, min(rooms))))
            # Tokenizers refuse to cut a sequence down to nothing.
            pairs += [
                (question.context if room > 0 else "", text) for room, text in zip(rooms, texts, strict=True)
            ]
        rows = iter(self._tokenize(pairs))
        for question in questions:
            self._report_lost_options(question)
        return [
            self._build(question, [next(rows) for _ in question.options], num_cut)
            for question, num_cut in zip(questions, cut, strict=True)
        ]

    def _report_lost_options(self, question: Question) -> None:
        encoded = self._call(list(question.options), add_special_tokens=False)["input_ids"]
        told: set[str] = set()
        for letter, option, ids in zip(LETTERS, question.options, encoded, strict=False):
            kind = what_is_lost(ids, self.tokenizer.unk_token_id) if option else None
            if kind is not None and kind not in told:
                told.add(kind)
                place = f"{self._source}, row {question.row}, option {letter}"
                self._warnings.odd_row(kind, question.id, place)

    def _call(self, *texts: Any, **settings: Any) -> BatchEncoding:
        with one_line(self._path / TOKENIZER_FILE, CANNOT_TOKENIZE):
            return self.tokenizer(*texts, **settings)

    def _count(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._call(list(texts), add_special_tokens=False)["input_ids"]]

    def _tokenize(self, pairs: Sequence[tuple[str, str]]) -> Iterator[dict[str, list[int]]]:
        """One row a pair; a row without a context may be longer than the limit."""
        firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
        found: dict[int, dict[str, list[int]]] = {}
        for has_context in (True, False):
            chosen = [place for place, first in enumerate(firsts) if bool(first) == has_context]
            if not chosen:
                continue
            cut: dict[str, Any] = (
                {"truncation": "only_first", "max_length": self.limit_tokens} if has_context else {}
            )
            encoded = self._call(
                [firsts[place] for place in chosen], [seconds[place] for place in chosen], **cut
            )
            for number, place in enumerate(chosen):
                found[place] = {key: values[number] for key, values in encoded.items()}
        return (found[place] for place in range(len(pairs)))

    def _fit(self, question: Question, texts: list[str], rooms: Sequence[int]) -> list[str]:
        """Reports rows that are too long without a context, and cuts what the model cannot read."""
        longest = self.limit_tokens - min(rooms)
        kind, bound = next(pair for pair in self._bounds if longest > pair[1])
        place = f"{self._source}, row {question.row}"
        excess = f"{longest} tokens without context, expected at most {bound}"
        self._warnings.odd_row(kind, question.id, f"{place}: {excess}")
        if not self._shape.has_position_table:
            return texts
        room = self._shape.window_tokens - self._num_special
        return [self._keep_end(text, room) for text in texts]

    def _keep_end(self, text: str, num_tokens: int) -> str:
        offsets = self._call(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        while len(offsets) > num_tokens:
            text = text[max(1, offsets[len(offsets) - num_tokens][0]) :]
            encoded = self._call(text, add_special_tokens=False, return_offsets_mapping=True)
            offsets = encoded["offset_mapping"]
        return text

    def _build(self, question: Question, rows: Sequence[dict[str, list[int]]], num_cut: int) -> EncoderPrompt:
        branches = tuple(
            Branch(
                option=option,
                order=(),
                label=None,
                token_ids=np.array(row["input_ids"], np.int32),
                text="",
                targets=(Target(position=0, token_id=None),),
            )
            for option, row in enumerate(rows)
        )
        types = None
        if self._shape.reads_token_types and "token_type_ids" in rows[0]:
            types = tuple(np.array(row["token_type_ids"], np.uint8) for row in rows)
        return EncoderPrompt(
            question=question, branches=branches, num_truncated_tokens=num_cut, token_types=types
        )


def batch_by_length(lengths: Sequence[tuple[int, int]], max_tokens: int) -> list[list[int]]:
    """Groups questions of like length, the longest first, so that padding is rare and memory known early.

    Args:
        lengths: rows and longest row of every question.
        max_tokens: most tokens of a batch, padding included; a question longer than that is one alone.

    Returns:
        Indexes of questions, each once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index][1])
    batches: list[list[int]] = []
    num_rows = longest = 0
    for index in order:
        rows, length = lengths[index]
        if not batches or (num_rows + rows) * longest > max_tokens:
            batches.append([])
            num_rows, longest = 0, length
        batches[-1].append(index)
        num_rows += rows
    return batches


def pad_rows(
    prompts: Sequence[EncoderPrompt], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> dict[str, torch.Tensor]:
    """What the model is called with: [R, 1, L] int64 each, every row a choice of one.

    So questions of differing numbers of options share a batch; a row's logit knows nothing of other rows.
    """
    rows = [branch.token_ids for prompt in prompts for branch in prompt.branches]
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    left = tokenizer.padding_side == "left"
    arrays = {
        "input_ids": _pad(rows, pad_id, left),
        "attention_mask": _pad([np.ones_like(row) for row in rows], 0, left),
    }
    if prompts[0].token_types is not None:
        types = [row for prompt in prompts for row in prompt.token_types or ()]
        arrays["token_type_ids"] = _pad(types, tokenizer.pad_token_type_id, left)
    return {name: torch.from_numpy(array).unsqueeze(1).to(device) for name, array in arrays.items()}


def _pad(rows: Sequence[np.ndarray], value: int, left: bool) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for target, row in zip(padded, rows, strict=True):
        if left:
            target[len(target) - len(row) :] = row
        else:
            target[: len(row)] = row
    return padded
