"""What a training step says when memory runs out in it: one line, with the smallest step there is.

A step is not halved as a sweep's micro-batch is: where it is cut decides the last bits of its gradients, and
a run that goes on from a checkpoint has to take the very steps of one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from strata.engine.memory_errors import MemoryRanOutError, first_sentence, is_out_of_memory
from strata.training.config import TrainConfig

SMALL_MICRO_BATCH_TOKENS = 256
"""A question longer than that is a micro-batch of its own."""


@contextmanager
def told_when_memory_runs_out(config: TrainConfig) -> Iterator[None]:
    """Around a step or an evaluation.

    Raises:
        MemoryRanOutError: host or device memory ran out; the message says what to try.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryRanOutError) or not is_out_of_memory(error):
            raise
        told = f"memory ran out ({first_sentence(error)}); expected more free memory"
        flags = smallest_step(config)
        hint = f", or the smallest step there is: {' '.join(flags)}" if flags else ""
        resume = "; --resume goes on from the last checkpoint" if config.save_every else ""
        raise MemoryRanOutError(f"{told}{hint}{resume}") from error


def smallest_step(config: TrainConfig) -> list[str]:
    """Flags that a run lacks to need as little memory as it can."""
    tokens = config.micro_batch_tokens
    flags = []
    if tokens is None or tokens > SMALL_MICRO_BATCH_TOKENS:
        flags.append(f"--micro-batch-tokens {SMALL_MICRO_BATCH_TOKENS}")
    if config.streamed and config.boundary_store == "ram":
        flags.append("--boundary-store disk")
    if not config.streamed and not config.full:
        flags.append("--streamed (a decoder)")
    if config.full and not config.gradient_checkpointing:
        flags.append("--gradient-checkpointing")
    return flags
