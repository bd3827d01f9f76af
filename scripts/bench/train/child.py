"""The process that part large of `strata bench train` limits: one streamed step, and one JSON line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.configs import TrainBenchConfig
from strata.scripts.bench.limited_process import answer_parent
from strata.scripts.bench.process_memory import peak_resident_bytes
from strata.scripts.bench.record import GIB
from strata.scripts.bench.train.step import reader_step, to_examples, train_settings
from strata.scripts.bench.workloads.synthetic_job import checkpoint_bytes
from strata.scripts.bench.workloads.synthetic_questions import synthetic_questions
from strata.training.readers.streamed_reader import open_streamed_reader


def measure(checkpoint: Path, config: TrainBenchConfig) -> dict[str, float]:
    """Trains one step; sizes in GiB, times in seconds."""
    vocab_size = SHAPES[config.large_shape].vocab_size
    questions = synthetic_questions(config.num_questions, config.question_size, vocab_size=vocab_size)
    device = "cpu" if config.device == "auto" else config.device
    plain = train_settings(checkpoint, checkpoint.parent, config.dtype, device, streamed=True)
    plain = replace(plain, memory_gib=config.limit_gib)
    reader = open_streamed_reader(plain)
    started = perf_counter()
    loss = reader_step(reader, to_examples(questions))
    seconds = perf_counter() - started
    reader.close()
    assert np.isfinite(loss), "loss is not finite"
    tokens = len(questions) * config.question_size.num_tokens
    return {
        "checkpoint_gib": checkpoint_bytes(checkpoint) / GIB,
        "peak_rss_gib": peak_resident_bytes() / GIB,
        "step_s": seconds,
        "wait_s": reader.stream.wait_s,
        "tokens": tokens,
        "tok_per_s": tokens / seconds,
    }


if __name__ == "__main__":
    answer_parent(measure, TrainBenchConfig)
