"""Runs an encoder's batches on its devices: logits, partial results on disk, and a look at the clock.

Knows no files beyond the callback that keeps scores. Legend: R rows, O options.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from strata.engine.deadline import SAFETY
from strata.engine.encoders.encoder import adapter_name
from strata.engine.encoders.rows import EncoderPrompt, pad_rows
from strata.engine.heads.probabilities import option_probabilities
from strata.engine.members.ensemble import average_members
from strata.engine.types import QuestionScores

KEEP_EVERY_S = 5.0
"""Scores go to disk about this often: what a crash may cost."""


class EncoderLane:
    """A model on a device.

    Args:
        model: with a multiple-choice head, and with `num_adapters` adapters that `add_adapters` put on it.
        device: where it is.
        tokenizer: pads.
        num_adapters: each is a member; with 0 the model itself is the only one.
    """

    def __init__(
        self, model: Any, device: torch.device, tokenizer: PreTrainedTokenizerBase, num_adapters: int
    ) -> None:
        self._model, self._device, self._tokenizer = model, device, tokenizer
        self._num_adapters = num_adapters

    def score(self, prompts: Sequence[EncoderPrompt]) -> tuple[list[list[np.ndarray]], bool]:
        """Logits of a batch.

        Returns:
            [O] float64 for every member and question, and whether float32 was needed to keep them finite.

        Raises:
            FloatingPointError: not finite in float32 either.
        """
        inputs = pad_rows(prompts, self._tokenizer, self._device)
        counts = [len(prompt.branches) for prompt in prompts]
        members, needed_float32 = [], False
        for member in range(max(1, self._num_adapters)):
            if self._num_adapters > 1:
                self._model.set_adapter(adapter_name(member))
            logits_R = choice_logits(self._model, inputs)
            if not bool(torch.isfinite(logits_R).all()):
                logits_R, needed_float32 = choice_logits(copy.deepcopy(self._model).float(), inputs), True
            if not bool(torch.isfinite(logits_R).all()):
                raise FloatingPointError("scores are not finite in float32: the weights hold NaN or inf")
            members.append([own.numpy() for own in logits_R.double().cpu().split(counts)])
        return members, needed_float32


@torch.no_grad()
def choice_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [R] of rows [R, 1, L]."""
    return model(**inputs).logits[:, 0]


class EncoderSweep:
    """Scores batches, each on the first lane that is free.

    Args:
        members: their names.
        keep: called with scores every few seconds, and at the end.
        deadline_s: value of `time.perf_counter()` by which the last batch should have ended; None for none.
        advance: told of tokens computed.

    Attributes:
        scores: by question id.
        num_tokens: computed for all members, padding aside.
        num_padding_tokens: computed in vain.
        num_float32_batches: computed again, in float32.
    """

    def __init__(
        self,
        members: Sequence[str],
        keep: Callable[[Sequence[QuestionScores]], None],
        deadline_s: float | None,
        advance: Callable[[int], None],
    ) -> None:
        self.scores: dict[str, QuestionScores] = {}
        self.num_tokens = self.num_padding_tokens = self.num_float32_batches = 0
        self._members, self._keep, self._deadline_s, self._advance = members, keep, deadline_s, advance
        self._unkept: list[QuestionScores] = []
        self._longest_s = 0.0
        self._kept_at = perf_counter()
        self._lock, self._stopped = Lock(), Event()

    def run(self, lanes: Sequence[EncoderLane], batches: Sequence[Sequence[EncoderPrompt]]) -> None:
        """Scores the batches in order, as many as the deadline allows; keeps what is done if it fails."""
        left = iter(batches)
        try:
            if len(lanes) == 1:
                self._work(lanes[0], left)
                return
            with ThreadPoolExecutor(len(lanes)) as pool:
                running = [pool.submit(self._work, lane, left) for lane in lanes]
                try:
                    for lane in running:
                        lane.result()
                finally:
                    self._stopped.set()
        finally:
            self._flush()

    def _work(self, lane: EncoderLane, left: Iterator[Sequence[EncoderPrompt]]) -> None:
        while (batch := self._next(left)) is not None:
            started = perf_counter()
            members, needed_float32 = lane.score(batch)
            with self._lock:
                self._finish(batch, members, perf_counter() - started)
                self.num_float32_batches += needed_float32

    def _next(self, left: Iterator[Sequence[EncoderPrompt]]) -> Sequence[EncoderPrompt] | None:
        with self._lock:
            late = (
                self._deadline_s is not None and perf_counter() + SAFETY * self._longest_s > self._deadline_s
            )
            return None if late or self._stopped.is_set() else next(left, None)

    def _finish(
        self, batch: Sequence[EncoderPrompt], members: list[list[np.ndarray]], seconds: float
    ) -> None:
        rows = {
            name: [
                QuestionScores(question=prompt.question, scores=own, probabilities=option_probabilities(own))
                for prompt, own in zip(batch, found, strict=True)
            ]
            for name, found in zip(self._members, members, strict=True)
        }
        scores = average_members(rows)
        self.scores |= {row.question.id: row for row in scores}
        self._unkept += scores
        tokens = sum(prompt.num_tokens for prompt in batch)
        num_rows = sum(len(prompt.branches) for prompt in batch)
        padded = num_rows * max(prompt.longest_tokens for prompt in batch)
        self.num_tokens += tokens * len(members)
        self.num_padding_tokens += (padded - tokens) * len(members)
        self._longest_s = max(self._longest_s, seconds)
        self._advance(tokens * len(members))
        if perf_counter() - self._kept_at > KEEP_EVERY_S:
            self._flush()

    def _flush(self) -> None:
        if self._unkept:
            self._keep(self._unkept)
        self._unkept, self._kept_at = [], perf_counter()
