"""`strata bench train`: what sharing the prefix saves in training, what streaming the weights costs.

    packed     a step of the resident reader against transformers + PEFT with every option's prefix repeated
    streamed   a step of the streamed reader against the resident one
    demo       how well the bundled model answers
    large      one streamed step of a model bigger than its memory, in a separate process under a limit
The ceiling of packed/unpacked is the ratio of tokens. That of streamed/resident is 2 / 3, since frozen
weights need no gradient, so that backward costs what forward does; or 2 / 2.7 without the last product of a
Llama layer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.configs import TrainBenchConfig
from strata.scripts.bench.limited_process import run_limited
from strata.scripts.bench.record import (
    RESULTS,
    append_result,
    asked_settings,
    print_environment,
    print_table,
    run_parts,
)
from strata.scripts.bench.roofline import measure_disk_rate
from strata.scripts.bench.timing import time_in_turns
from strata.scripts.bench.train.demo import run_demo_part
from strata.scripts.bench.train.step import (
    load_peft_model,
    reader_step,
    to_examples,
    train_settings,
    unpacked_step,
)
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.synthetic_questions import SyntheticQuestion, synthetic_questions
from strata.training.readers.resident_reader import open_resident_reader
from strata.training.readers.streamed_reader import open_streamed_reader

DEFAULT_PARTS = ("packed", "streamed", "demo")
ATTENTIONS = ("sdpa", "eager")
"""Of transformers, for the unpacked step; the faster one counts."""


def run_train_bench(config: TrainBenchConfig) -> int:
    """Runs the parts, prints tables and one JSON line, and appends it to the results."""
    print_environment()
    config.folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "packed": run_packed_part,
        "streamed": run_streamed_part,
        "demo": run_demo_part,
        "large": run_large_part,
    }
    figures = run_parts(parts, config.parts or DEFAULT_PARTS, config)
    append_result("train", figures | {"config": asked_settings(config)}, RESULTS)
    return 0


def run_packed_part(config: TrainBenchConfig) -> dict[str, Any]:
    """Step times of the packed reader and of the unpacked baseline, in turns."""
    checkpoint, questions, device = make_job(config)
    examples = to_examples(questions)
    reader = open_resident_reader(train_settings(checkpoint, config.folder, config.dtype, str(device)))
    steps: dict[str, Callable[[], float]] = {"packed": lambda: reader_step(reader, examples)}
    for attention in ATTENTIONS:
        model = load_peft_model(checkpoint, getattr(torch, config.dtype), device, attention)
        steps[f"unpacked, {attention}"] = partial(unpacked_step, model, questions, device)
    times = time_steps(steps, config.rounds, device)
    unpacked_s = min(times[f"unpacked, {attention}"] for attention in ATTENTIONS)
    tokens = config.question_size.num_tokens
    unpacked_tokens = config.num_options * (config.prefix_tokens + config.option_tokens)
    return {
        "train_packed_over_unpacked": unpacked_s / times["packed"],
        "train_packed_ceiling_tokens": unpacked_tokens / tokens,
        "train_packed_tok_per_s": len(questions) * tokens / times["packed"],
        "train_packed_step_s": times["packed"],
        "train_unpacked_step_s": {name: times[f"unpacked, {name}"] for name in ATTENTIONS},
    }


def run_streamed_part(config: TrainBenchConfig) -> dict[str, Any]:
    """Step times of the streamed and the resident reader, in turns."""
    checkpoint, questions, device = make_job(config)
    examples = to_examples(questions)
    settings = train_settings(checkpoint, config.folder, config.dtype, str(device))
    resident = open_resident_reader(settings)
    streamed = open_streamed_reader(replace(settings, streamed=True))
    steps = {
        "resident": lambda: reader_step(resident, examples),
        "streamed": lambda: reader_step(streamed, examples),
    }
    times = time_steps(steps, config.rounds, device)
    streamed.close()
    return {
        "train_streamed_over_resident": times["resident"] / times["streamed"],
        "train_resident_step_s": times["resident"],
        "train_streamed_step_s": times["streamed"],
        "train_streamed_wait_s": streamed.stream.wait_s / (config.rounds + 1),
        "disk_mb_per_s": measure_disk_rate(checkpoint, 1 << 30) / 1e6,
    }


def run_large_part(config: TrainBenchConfig) -> dict[str, Any]:
    """One streamed step under the memory limit; the peak is that of the child's whole resident set."""
    name = f"{config.large_shape}-{config.large_storage or 'bf16'}"
    checkpoint = make_random_checkpoint(
        SHAPES[config.large_shape], config.folder / name, storage=config.large_storage
    )
    try:
        measured = run_limited("strata.scripts.bench.train.child", checkpoint, config, config.limit_gib)
    finally:
        shutil.rmtree(checkpoint)
    print_table([measured])
    under_limit = measured["peak_rss_gib"] < config.limit_gib
    others = {f"large_{key}": value for key, value in measured.items() if key != "peak_rss_gib"}
    large = {"large_shape": name, "large_under_limit": under_limit}
    return {"train_streamed_peak_gib": measured["peak_rss_gib"]} | others | large


def make_job(config: TrainBenchConfig) -> tuple[Path, list[SyntheticQuestion], torch.device]:
    """The random checkpoint, the questions of a step, and the device."""
    shape = replace(SHAPES[config.shape], num_layers=config.num_layers)
    checkpoint = make_random_checkpoint(
        shape, config.folder / f"{config.shape}-{config.num_layers}", dtype=config.dtype
    )
    default = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(default if config.device == "auto" else config.device)
    questions = synthetic_questions(config.num_questions, config.question_size, vocab_size=shape.vocab_size)
    return checkpoint, questions, device


def time_steps(steps: dict[str, Callable[[], float]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of every kind of step, after one untimed step of each; prints all times and losses."""
    losses = {name: step() for name, step in steps.items()}
    times = time_in_turns(steps, rounds, device)
    print_table(
        [
            {
                "step": name,
                "loss": losses[name],
                "median s": median(seconds),
                "min s": min(seconds),
                "max s": max(seconds),
            }
            for name, seconds in times.items()
        ]
    )
    return {name: median(seconds) for name, seconds in times.items()}
