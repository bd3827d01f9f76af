"""Runs an encoder's batches on its devices, and yields scores as they are known.

Knows no files and no questions' prompts. Legend: R rows, O options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from threading import Event, Lock
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from strata.engine.deadline import Deadline
from strata.engine.encoders.encoder import adapter_name
from strata.engine.encoders.rows import EncoderPrompt, pad_rows
from strata.engine.memory_errors import MemoryRanOutError, first_sentence, is_out_of_memory


class EncoderLane:
    """A model on a device.

    Args:
        model: with a multiple-choice head, and with `num_adapters` adapters that `add_adapters` put on it.
        device: where it is.
        tokenizer: pads.
        num_adapters: each is a member; with 0 the model itself is the only one.

    Attributes:
        num_halved: batches that were cut in two so far, since memory ran out.
    """

    def __init__(
        self, model: Any, device: torch.device, tokenizer: PreTrainedTokenizerBase, num_adapters: int
    ) -> None:
        self._model, self._device, self._tokenizer = model, device, tokenizer
        self._num_adapters = num_adapters
        self.num_halved = 0
        self._dtype = next(model.parameters()).dtype

    def score(self, prompts: Sequence[EncoderPrompt]) -> tuple[list[list[np.ndarray]], bool]:
        """Logits of a batch; one for which memory runs out is cut in two.

        Returns:
            [O] float64 for every member and question, and whether float32 was needed to keep them finite.

        Raises:
            FloatingPointError: not finite in float32 either.
            MemoryRanOutError: a question alone does not fit.
        """
        try:
            return self._score(prompts)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(prompts) == 1:
                raise MemoryRanOutError(
                    f"memory ran out ({first_sentence(error)}) with one question at a time; expected more "
                    f"free memory, or --max-tokens below {prompts[0].longest_tokens}"
                ) from error
        self.num_halved += 1
        middle = (len(prompts) + 1) // 2
        halves = [self.score(part) for part in (prompts[:middle], prompts[middle:])]
        members = [first + last for first, last in zip(*(found for found, _ in halves), strict=True)]
        return members, any(needed_float32 for _, needed_float32 in halves)

    def _score(self, prompts: Sequence[EncoderPrompt]) -> tuple[list[list[np.ndarray]], bool]:
        inputs = pad_rows(prompts, self._tokenizer, self._device)
        counts = [len(prompt.branches) for prompt in prompts]
        members, needed_float32 = [], False
        for member in range(max(1, self._num_adapters)):
            if self._num_adapters > 1:
                self._model.set_adapter(adapter_name(member))
            logits_R = choice_logits(self._model, inputs)
            if not bool(torch.isfinite(logits_R).all()):
                logits_R, needed_float32 = self._in_float32(inputs), True
            if not bool(torch.isfinite(logits_R).all()):
                odd = [
                    repr(prompt.question.id)
                    for prompt, logits in zip(prompts, logits_R.split(counts), strict=True)
                    if not bool(torch.isfinite(logits).all())
                ]
                raise FloatingPointError(
                    "scores are not finite in float32: the weights hold NaN or inf "
                    f"({len(odd)} question(s), id {', '.join(odd[:3])})"
                )
            members.append([logits.numpy() for logits in logits_R.double().cpu().split(counts)])
        return members, needed_float32

    def _in_float32(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [R] in float32; the model is widened where it is and narrowed again, which loses nothing."""
        try:
            return choice_logits(self._model.float(), inputs)
        finally:
            self._model.to(self._dtype)


@torch.no_grad()
def choice_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [R] of rows [R, 1, L]."""
    return model(**inputs).logits[:, 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredBatch:
    """A batch's logits: `members` holds [O] float64 for every member and question.

    `num_halved` counts how often it, or a part of it, was cut in two to fit in memory.
    """

    prompts: Sequence[EncoderPrompt]
    members: list[list[np.ndarray]]
    needed_float32: bool
    num_halved: int
    seconds: float

    @property
    def num_tokens(self) -> int:
        """Computed for all members, padding aside."""
        return sum(prompt.num_tokens for prompt in self.prompts) * len(self.members)

    @property
    def num_padding_tokens(self) -> int:
        """Computed in vain, for all members."""
        num_rows = sum(len(prompt.branches) for prompt in self.prompts)
        padded = num_rows * max(prompt.longest_tokens for prompt in self.prompts)
        return padded * len(self.members) - self.num_tokens


def score_batches(
    lanes: Sequence[EncoderLane], batches: Sequence[Sequence[EncoderPrompt]], deadline: Deadline
) -> Iterator[ScoredBatch]:
    """Scores batches in order, each on the first lane that is free, as many as the deadline allows.

    Yields:
        Each batch as it is done; closing the iterator ends the work.

    Raises:
        FloatingPointError: scores that are not finite in float32; what was done before has been yielded.
    """
    left = _Batches(batches, deadline)
    if len(lanes) == 1:
        while (batch := left.take()) is not None:
            yield left.timed(lanes[0], batch)
        return
    done: Queue[ScoredBatch | None] = Queue()
    with ThreadPoolExecutor(len(lanes)) as pool:
        running = [pool.submit(_work, lane, left, done) for lane in lanes]
        try:
            for _ in lanes:
                while (scored := done.get()) is not None:
                    yield scored
        finally:
            left.stop()
        for lane_work in running:
            lane_work.result()


def _work(lane: EncoderLane, left: _Batches, done: Queue[ScoredBatch | None]) -> None:
    """A lane's thread; None says that it has ended, well or not."""
    try:
        while (batch := left.take()) is not None:
            done.put(left.timed(lane, batch))
    except BaseException:
        left.stop()
        raise
    finally:
        done.put(None)


class _Batches:
    """What is left to do, for several lanes: until the deadline, or until one of them fails."""

    def __init__(self, batches: Sequence[Sequence[EncoderPrompt]], deadline: Deadline) -> None:
        self._left, self._deadline = iter(batches), deadline
        self._longest_s = 0.0
        self._lock, self._stopped = Lock(), Event()

    def take(self) -> Sequence[EncoderPrompt] | None:
        """The next batch, if there is one and time for it."""
        with self._lock:
            if self._stopped.is_set() or not self._deadline.allows(self._longest_s):
                return None
            return next(self._left, None)

    def timed(self, lane: EncoderLane, batch: Sequence[EncoderPrompt]) -> ScoredBatch:
        """A batch's logits, and how long they took."""
        started, num_halved = perf_counter(), lane.num_halved
        members, needed_float32 = lane.score(batch)
        seconds = perf_counter() - started
        with self._lock:
            self._longest_s = max(self._longest_s, seconds)
        return ScoredBatch(
            prompts=batch,
            members=members,
            needed_float32=needed_float32,
            num_halved=lane.num_halved - num_halved,
            seconds=seconds,
        )

    def stop(self) -> None:
        """No more batches are given out."""
        self._stopped.set()
