"""Sweeps over layers of well-known models, of random weights: from disk, resident, and in little memory.

A sweep's rate counts useful FLOPs only, those that a model needs that shares nothing it must not share; its
share of the datasheet's rate is the MFU. As many questions as take some seconds on the card at hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from strata.engine.machine.devices import resolve_dtype
from strata.engine.machine.measure import measure_gemm_rate
from strata.engine.plan.shapes import LLAMA2_7B, LLAMA2_70B, TINY, ModelShape
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.gpu.config import GpuBenchConfig
from strata.scripts.bench.gpu.peaks import share_of_peak
from strata.scripts.bench.gpu.stages import Figures
from strata.scripts.bench.workloads.baselines import hf_dynamic_cache, hf_naive, load_hf_model
from strata.scripts.bench.workloads.flops import num_parameters, useful_flops
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.random_storage import Storage
from strata.scripts.bench.workloads.synthetic_job import (
    SyntheticRun,
    checkpoint_bytes,
    make_job,
    plan_synthetic,
    run_synthetic,
)

CARD = torch.device("cuda:0")
NUM_LAYERS = 4
"""Of the checkpoint that is streamed: 6.8 GiB of a 70B's layers."""
NUM_CAPPED_LAYERS = 8
RESIDENT_SHARE = 0.4
"""Of the card's memory, for layers of a 7B that stay there: all of them from 40 GB on."""
NUM_QUESTIONS, FEWEST_QUESTIONS = 48, 12
GROUP_S = 4.0
"""Seconds of a group at the rate of a product alone."""
NUM_COMPARED = 12
"""Questions that transformers is timed on."""
CAPPED_GIB = 15.0
"""What a T4 has left of its 16 GB."""
QUESTION = QuestionSize(prefix_tokens=1275, option_tokens=45, num_options=5)
TINY_QUESTION = QuestionSize(prefix_tokens=40, option_tokens=6, num_options=2)


def time_sweep(config: GpuBenchConfig) -> Figures:
    """Some layers of a 70B from disk, streamed and resident: same bits, time, waits, memory by the plan."""
    run, common = _runner(config, LLAMA2_70B, NUM_LAYERS), {"num_groups": 1}
    num_questions = 4 if config.tiny else NUM_QUESTIONS
    streamed = run(num_questions, resident_layers=0, **common)
    resident = run(num_questions, resident_layers=_num_layers(config, NUM_LAYERS), **common)
    found = {"streamed": _run_sweep(streamed), "resident": _run_sweep(resident)}
    scores = [figures.pop("scores") for figures in found.values()]
    is_same = bool(np.array_equal(*scores))
    # The matrices of the roofline that is measured beside a sweep outweigh a tiny model.
    is_as_planned = config.tiny or all(one["device_over_plan"] <= 1 for one in found.values())
    return {
        "ok": is_same and is_as_planned,
        "same_bits": is_same,
        "checkpoint_bytes": checkpoint_bytes(streamed.config.model),
        **found,
    }


def time_resident(config: GpuBenchConfig) -> Figures:
    """Layers of a 7B that stay on the card: the second of two groups, which reads nothing.

    Beside transformers on the same card and questions: an option at a time, and a cache a question.
    """
    memory = torch.cuda.get_device_properties(CARD).total_memory
    layer_bytes = card_dtype().itemsize * num_parameters(replace(LLAMA2_7B, num_layers=1, vocab_size=0))
    num_layers = _num_layers(config, min(LLAMA2_7B.num_layers, int(RESIDENT_SHARE * memory / layer_bytes)))
    plan = _runner(config, LLAMA2_7B, num_layers)
    num_questions = 2 * _questions_of_a_group(config, LLAMA2_7B, num_layers)
    run = plan(num_questions, num_groups=2, resident_layers=num_layers)
    found = _run_groups(run)
    return found | {"transformers": _time_transformers(run, found.pop("scores"), found["questions_per_s"])}


def time_capped(config: GpuBenchConfig) -> Figures:
    """Layers of a 70B in NF4, streamed from disk through as much memory as a T4 has."""
    num_layers = _num_layers(config, NUM_CAPPED_LAYERS)
    run = _runner(config, LLAMA2_70B, num_layers, storage="nf4")
    num_questions = _questions_of_a_group(config, LLAMA2_70B, num_layers)
    found = _run_groups(run(num_questions, num_groups=1, resident_layers=0, memory_gib=CAPPED_GIB))
    del found["scores"]
    return {"ok": found["peak_device_bytes"] <= CAPPED_GIB * 2**30, **found}


def _num_layers(config: GpuBenchConfig, num_layers: int) -> int:
    return TINY.num_layers if config.tiny else num_layers


def _runner(
    config: GpuBenchConfig, shape: ModelShape, num_layers: int, storage: Storage | None = None
) -> Any:
    """(number of questions, settings of `strata score`) -> a run on some layers of a shape, on the card."""
    shape = TINY if config.tiny else replace(shape, num_layers=num_layers)
    folder = config.folder / "-".join([shape.name, str(shape.num_layers), *([storage] if storage else [])])
    checkpoint = make_random_checkpoint(shape, folder, storage=storage)

    def plan(num_questions: int, **settings: Any) -> SyntheticRun:
        job = make_job(shape, num_questions, TINY_QUESTION if config.tiny else QUESTION)
        return plan_synthetic(job, checkpoint, config.folder, devices=str(CARD), **settings)

    return plan


def _questions_of_a_group(config: GpuBenchConfig, shape: ModelShape, num_layers: int) -> int:
    """As many as the card's products alone take `GROUP_S` for."""
    if config.tiny:
        return 4
    rate = measure_gemm_rate(CARD, card_dtype(), shape.hidden_size)
    flops = useful_flops(replace(shape, num_layers=num_layers), QUESTION, scored_tokens=QUESTION.num_options)
    return max(FEWEST_QUESTIONS, round(GROUP_S * rate / flops))


def _run_groups(run: SyntheticRun) -> Figures:
    """A run of groups of equally many questions: seconds of each, and the last one's rate."""
    torch.cuda.reset_peak_memory_stats(CARD)
    done = run_synthetic(run, cold=True)
    questions = len(run.job.questions)
    questions_per_s = questions / len(done.group_s) / done.group_s[-1]
    rate = run.job.flops * questions_per_s
    return {
        "questions": questions,
        "group_s": done.group_s,
        "sweep_s": done.sweep_s,
        "weights_wait_s": done.weight_stream.weights_wait_s,
        "questions_per_s": questions_per_s,
        "flop_per_s": rate,
        "mfu": share_of_peak(rate, torch.cuda.get_device_name(CARD), card_dtype()),
        "micro_batch_tokens": run.plan.micro_batch_tokens,
        "hidden_store": run.plan.hidden_store,
        "peak_device_bytes": torch.cuda.max_memory_allocated(CARD),
        "planned_device_bytes": run.plan.memory_bytes,
        "predicted_s": run.plan.predicted_s,
        "scores": done.scores,
    }


def _time_transformers(run: SyntheticRun, scores: np.ndarray, questions_per_s: float) -> Figures:
    """Questions a second of the two ways to beat, strata's over theirs, and by how much scores differ."""
    model = load_hf_model(run.config.model, dtype=card_dtype(), device=CARD)
    found: Figures = {}
    for name, baseline in (("naive", hf_naive), ("dynamic_cache", hf_dynamic_cache)):
        theirs = baseline(model, run.job.questions[:NUM_COMPARED])
        ours = scores[: len(theirs.scores)]
        found[name] = {
            "questions_per_s": 1 / theirs.median_s,
            "over": questions_per_s * theirs.median_s,
            "difference_over_spread": float(np.abs(theirs.scores - ours).max() / np.ptp(ours)),
        }
    return found


def _run_sweep(run: SyntheticRun) -> Figures:
    torch.cuda.reset_peak_memory_stats(CARD)
    done = run_synthetic(run, cold=True)
    peak = torch.cuda.max_memory_allocated(CARD)
    return {
        "seconds": done.seconds,
        "sweep_s": done.sweep_s,
        "group_s": done.group_s,
        "weights_wait_s": done.weight_stream.weights_wait_s,
        "flop_per_s": run.job.flops * len(run.job.questions) / done.sweep_s,
        "peak_device_bytes": peak,
        "device_over_plan": peak / run.plan.memory_bytes,
        "predicted_s": run.plan.predicted_s,
        "scores": done.scores,
    }


def card_dtype() -> torch.dtype:
    """What the card computes a bfloat16 checkpoint in by its own choice."""
    return resolve_dtype("auto", torch.bfloat16, (str(CARD),))
