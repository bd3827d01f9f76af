"""The sweep bench: strata resident and streamed against the GEMM roofline and two Hugging Face loops.

Every round runs strata resident, strata streamed and the DynamicCache loop, in turn. A machine that is shared
changes its speed, so each run stands between two GEMM probes: it counts as the share of the roofline it
reaches (useful FLOPs / seconds / mean of the two probes), and is repeated when the probes differ by more than
a tenth. Ratios between runs are ratios of these shares; medians over the rounds are reported, and all rounds
are kept. A resident run is two groups of questions, of which the second counts, since its weights are in
memory by then, as they are for the loops. A streamed run starts with the page cache of the checkpoint dropped
and counts whole, its first layer's read included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from strata.engine.checkpoint import open_checkpoint
from strata.engine.heads import TargetTable, build_target_table
from strata.engine.job import plan_job
from strata.engine.machine import GIB, resolve_devices
from strata.engine.peak_memory import PeakMemory
from strata.engine.prefix_tree import build_prefix_tree
from strata.engine.safetensors_file import TensorReader
from strata.engine.score_config import ScoreConfig
from strata.engine.sweep import SweepJob, SweepResult, run_sweep
from strata.engine.types import Branch, Prompt, Question, Target
from strata.engine.vocabulary import target_logits, vocabulary_projection
from strata.scripts.bench.baselines import (
    SyntheticQuestion,
    hf_dynamic_cache,
    hf_naive,
    load_hf_model,
    synthetic_questions,
)
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.record import Stopwatch, append_result, environment_line, print_table
from strata.scripts.bench.roofline import drop_page_cache, measure_disk_rate, measure_gemm_rate
from strata.scripts.bench.shapes import SHAPES, layer_gemm_shapes, useful_flops

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESULTS = Path(__file__).parent / "results"
LABEL_TOKENS = (3, 4)
RESIDENT_GROUPS = 2
PROBE_S = 0.3
MAX_DRIFT = 0.1
MAX_TRIES = 2


@dataclass(frozen=True, kw_only=True)
class ProbedRun:
    """Seconds a question of one run, the mean of the GEMM probes around it, and how far they differ."""

    seconds: float
    gemm_flop_per_s: float
    flops: int
    drift: float

    @property
    def roofline_share(self) -> float:
        """Useful FLOP/s over the GEMM rate."""
        return self.flops / self.seconds / self.gemm_flop_per_s


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all rounds share."""

    config: SweepBenchConfig
    checkpoint: Path
    device: torch.device
    questions: list[SyntheticQuestion]
    targets: TargetTable
    resident: SweepJob
    streamed: SweepJob

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the checkpoint's weights."""
        return sum(file.stat().st_size for file in self.checkpoint.glob("*.safetensors"))

    @property
    def flops(self) -> int:
        """Useful FLOPs of one question's prefix tree."""
        return useful_flops(
            SHAPES[self.config.shape], scored_tokens=self.config.num_options, **asked(self.config)
        )


def run_sweep_bench(config: SweepBenchConfig) -> int:
    """Runs the bench, prints a table and one JSON line, and appends it to the results."""
    print(environment_line())
    bench = prepare(config)
    disk_rate = measure_disk_rate(bench.checkpoint, 1 << 30)
    print(f"checkpoint {bench.checkpoint_bytes / GIB:.2f} GiB, disk {disk_rate / 1e6:.0f} MB/s")
    print(f"streamed plan: {bench.streamed.plan}")
    with PeakMemory(0.002) as memory:
        _, streamed, scores = run_streamed(bench)
    model = load_hf_model(bench.checkpoint, dtype=bench.resident.plan.torch_dtype, device=bench.device)
    difference = rms_difference(hf_dynamic_cache(model, bench.questions[:1]).scores, scores[:1])
    rounds = [run_round(bench, model) for _ in range(config.rounds)]
    naive_questions = bench.questions[: config.num_naive_questions]
    naive = probe(bench, lambda: hf_naive(model, naive_questions).median_s)
    print_rounds([*rounds, {"naive": naive}])
    result = {
        **compare(rounds, naive),
        "streamed_peak_gib": (memory.peak_bytes - memory.baseline_bytes) / GIB,
        "streamed_peak_rss_gib": memory.peak_bytes / GIB,
        "budget_gib": streamed_budget_gib(config, bench.checkpoint),
        "disk_mb_per_s": disk_rate / 1e6,
        "streamed_read_mb_per_s": bench.streamed.plan.bytes_read / streamed.weights_read_s / 1e6,
        "streamed_wait_s": streamed.weights_wait_s,
        "rms_difference_from_dynamic_cache": difference,
        "rounds": [{name: asdict(run) for name, run in one.items()} for one in (*rounds, {"naive": naive})],
        "config": {
            **asked(config),
            "shape": config.shape,
            "num_questions": config.num_questions,
            "device": str(bench.device),
            "dtype": bench.resident.plan.dtype,
            "micro_batch_tokens": bench.resident.plan.micro_batch_tokens,
            "streamed_hidden_store": bench.streamed.plan.hidden_store,
            "streamed_resident_layers": len(bench.streamed.plan.resident_layers),
        },
    }
    append_result("sweep", result, RESULTS)
    return 0


def prepare(config: SweepBenchConfig) -> Bench:
    """Checkpoint, questions and the two plans."""
    checkpoint = make_checkpoint(config)
    shape = SHAPES[config.shape]
    device = "cpu" if config.device == "cpu" else resolve_devices("auto")[0]
    questions = synthetic_questions(config.num_questions, vocab_size=shape.vocab_size, **asked(config))
    prompts = [as_prompt(index, question) for index, question in enumerate(questions)]
    tree = build_prefix_tree([branch.token_ids for prompt in prompts for branch in prompt.branches])
    targets = build_target_table(prompts, tree)
    common = {"model": checkpoint, "questions": checkpoint, "out": config.folder, "devices": device}
    common |= {"micro_batch_tokens": config.micro_batch_tokens}
    budget_gib = streamed_budget_gib(config, checkpoint)
    settings = (
        ScoreConfig(**common, resident_layers=shape.num_layers, num_groups=RESIDENT_GROUPS),
        ScoreConfig(**common, memory_gib=budget_gib, resident_layers=0),
    )
    opened = open_checkpoint(checkpoint)
    resident, streamed = (
        plan_job(one, "yes-no", opened, (), prompts, tree, targets).sweep for one in settings
    )
    return Bench(
        config=config,
        checkpoint=checkpoint,
        device=torch.device(device),
        questions=questions,
        targets=targets,
        resident=resident,
        streamed=streamed,
    )


def run_round(bench: Bench, model: PreTrainedModel) -> dict[str, ProbedRun]:
    """One round: every run once."""
    per_group = bench.config.num_questions / RESIDENT_GROUPS
    dynamic_questions = bench.questions[: bench.config.num_dynamic_questions]
    return {
        "resident": probe(bench, lambda: run_job(bench, bench.resident)[1].group_s[-1] / per_group),
        "streamed": probe(bench, lambda: run_streamed(bench)[0] / bench.config.num_questions),
        "dynamic_cache": probe(bench, lambda: hf_dynamic_cache(model, dynamic_questions).median_s),
    }


def probe(bench: Bench, run: Callable[[], float]) -> ProbedRun:
    """Seconds a question of a run, between two GEMM probes that agree (or the last of a few tries)."""
    before = gemm_flop_per_s(bench)
    for _ in range(MAX_TRIES):
        seconds = run()
        after = gemm_flop_per_s(bench)
        drift = abs(after - before) / max(after, before)
        found = ProbedRun(
            seconds=seconds, gemm_flop_per_s=(before + after) / 2, flops=bench.flops, drift=drift
        )
        if drift <= MAX_DRIFT:
            break
        before = after
    return found


def gemm_flop_per_s(bench: Bench) -> float:
    """The GEMM roofline at this moment."""
    plan = bench.resident.plan
    shapes = layer_gemm_shapes(SHAPES[bench.config.shape], plan.micro_batch_tokens)
    return measure_gemm_rate(plan.torch_dtype, bench.device, shapes, seconds=PROBE_S).best_flop_per_s


def run_streamed(bench: Bench) -> tuple[float, SweepResult, np.ndarray]:
    """The streamed job with the checkpoint's pages dropped from memory first."""
    drop_page_cache([bench.checkpoint])
    return run_job(bench, bench.streamed)


def run_job(bench: Bench, job: SweepJob) -> tuple[float, SweepResult, np.ndarray]:
    """Seconds of sweep and head, the sweep's result, and the label differences [Q, O]."""
    reader = TensorReader()
    with Stopwatch(bench.device) as watch:
        swept = run_sweep(job, reader, bench.config.folder)
        logits = target_logits(
            vocabulary_projection(job.checkpoint),
            swept.readouts[job.members[0]],
            bench.targets.rows,
            bench.targets.token_ids,
            reader,
            bench.device,
            normalized=False,
        )
    return watch.seconds, swept, (logits[0::2] - logits[1::2]).reshape(len(bench.questions), -1)


def compare(rounds: list[dict[str, ProbedRun]], naive: ProbedRun) -> dict[str, float]:
    """Shares of the roofline and their ratios, medians over the rounds."""

    def over(name: str, other: str) -> float:
        return median(one[name].roofline_share / one[other].roofline_share for one in rounds)

    return {
        "resident_over_roofline": median(one["resident"].roofline_share for one in rounds),
        "streamed_over_roofline": median(one["streamed"].roofline_share for one in rounds),
        "dynamic_cache_over_roofline": median(one["dynamic_cache"].roofline_share for one in rounds),
        "resident_over_naive": median(one["resident"].roofline_share for one in rounds)
        / naive.roofline_share,
        "resident_over_dynamic_cache": over("resident", "dynamic_cache"),
        "streamed_over_resident": over("streamed", "resident"),
        "largest_drift": max(run.drift for one in rounds for run in (*one.values(), naive)),
    }


def as_prompt(index: int, question: SyntheticQuestion) -> Prompt:
    """A synthetic question as the yes-no head sees it: two label tokens after each option."""
    branches = []
    for option, option_ids in enumerate(question.option_ids):
        token_ids = np.concatenate([question.prefix_ids, option_ids]).astype(np.int32)
        branches += [
            Branch(
                option=option,
                order=(),
                label=str(label),
                token_ids=token_ids,
                text="",
                targets=(Target(position=len(token_ids), token_id=label),),
            )
            for label in LABEL_TOKENS
        ]
    options = tuple(str(option) for option in range(len(question.option_ids)))
    return Prompt(question=Question(id=str(index), prompt="", options=options), branches=tuple(branches))


def print_rounds(rounds: list[dict[str, ProbedRun]]) -> None:
    """One row a run of a round."""
    print_table(
        [
            {
                "round": number,
                "run": name,
                "s a question": run.seconds,
                "GEMM GFLOP/s": run.gemm_flop_per_s / 1e9,
                "of roofline": run.roofline_share,
            }
            for number, one in enumerate(rounds)
            for name, run in one.items()
        ]
    )


def asked(config: SweepBenchConfig) -> dict[str, int]:
    """The size of a question."""
    return {
        "prefix_tokens": config.prefix_tokens,
        "option_tokens": config.option_tokens,
        "num_options": config.num_options,
    }


def streamed_budget_gib(config: SweepBenchConfig, checkpoint: Path) -> float:
    """The budget of the streamed run: what was asked for, or a quarter of the checkpoint."""
    size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    return config.memory_gib or size / 4 / GIB


def rms_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of a - b."""
    return float(np.sqrt(np.mean((a - b) ** 2)))


def make_checkpoint(config: SweepBenchConfig) -> Path:
    """The random checkpoint of the config's shape, made when it is not there."""
    return make_random_checkpoint(SHAPES[config.shape], config.folder / config.shape)
