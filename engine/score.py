"""The main job: from a question file to the artefacts of a run. Composes the stages; each is elsewhere.

prepare (read, render, plan) -> sweep (readouts) -> head (scores) -> artefacts (submission.csv,
scores.parquet, run.json, report.html, prompts.jsonl on request).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from strata.engine.heads import CLASSIFIER_HEADS, average_members, score_classifier, score_tokens
from strata.engine.job import PhaseTimer, ScoringJob, describe_plan, prepare_job
from strata.engine.metrics import evaluate
from strata.engine.peak_memory import PeakMemory
from strata.engine.progress import progress_bar
from strata.engine.report import write_report
from strata.engine.results import write_prompts, write_scores, write_submission
from strata.engine.run_record import RunRecord
from strata.engine.safetensors_file import TensorReader
from strata.engine.score_config import ScoreConfig
from strata.engine.sweep import SweepResult, run_sweep
from strata.engine.types import QuestionScores, RunWarnings
from strata.engine.vocabulary import target_logits, vocabulary_projection

__all__ = ["ScoreConfig", "ScoreRun", "score_questions"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreRun:
    """What a run found: scores in the file's order, run.json's content, and the folder it left."""

    scores: list[QuestionScores]
    record: dict
    out: Path


def score_questions(config: ScoreConfig) -> ScoreRun:
    """Scores a question file and leaves the artefacts in `config.out`.

    Raises:
        InputError: bad input; nothing is left.
        OutputError: an artefact cannot be written; run.json says so where it can.
        FloatingPointError: hidden states that are not finite even in float32.
    """
    warnings = RunWarnings(strict=config.strict)
    timer = PhaseTimer()
    with RunRecord(config.out / "run.json", asdict(config), warnings) as record, PeakMemory() as memory:
        job = prepare_job(config, warnings, timer)
        record.plan = describe_plan(job)
        record.begin()
        reader = TensorReader()
        try:
            with timer.phase("sweep"):
                swept = _sweep(job, reader)
            with timer.phase("heads"):
                scores = _score_members(job, swept, reader)
        finally:
            reader.close()
        record.metrics = evaluate(scores)
        with timer.phase("write"):
            _write_artefacts(job, scores)
        _report_overflows(swept, warnings)
        record.measured = _measure(job, swept, reader, timer, memory)
    finished = record.as_dict()
    write_report(config.out / "report.html", finished, scores)
    return ScoreRun(scores=scores, record=finished, out=config.out)


def _sweep(job: ScoringJob, reader: TensorReader) -> SweepResult:
    total = job.tree.num_tokens * job.checkpoint.num_layers * len(job.sweep.members)
    with progress_bar("sweep", total, shown=job.config.progress) as advance:
        return run_sweep(job.sweep, reader, job.config.out, advance)


def _score_members(job: ScoringJob, swept: SweepResult, reader: TensorReader) -> list[QuestionScores]:
    members = {}
    for number, name in enumerate(job.sweep.members):
        readouts = swept.readouts[name]
        if job.head in CLASSIFIER_HEADS:
            weight = _classifier_weight(job, number, reader)
            members[name] = score_classifier(job.head, job.prompts, job.targets, readouts, weight)
            continue
        logits = target_logits(
            vocabulary_projection(job.checkpoint),
            readouts,
            job.targets.rows,
            job.targets.token_ids,
            reader,
            torch.device(job.plan.devices[0]),
            normalized=job.targets.needs_normalization(job.head),
        )
        members[name] = score_tokens(job.head, job.prompts, job.targets, logits)
    return average_members(members)


def _classifier_weight(job: ScoringJob, number: int, reader: TensorReader) -> torch.Tensor:
    adapters = job.sweep.adapters
    if adapters and (own := adapters[number].score) is not None:
        return own
    return reader.read(job.checkpoint.require("score.weight").parts[0][0])


def _write_artefacts(job: ScoringJob, scores: list[QuestionScores]) -> None:
    out = job.config.out
    if job.config.save_prompts:
        write_prompts(out / "prompts.jsonl", job.prompts)
    write_scores(out / "scores.parquet", scores)
    write_submission(out / "submission.csv", scores)


def _report_overflows(swept: SweepResult, warnings: RunWarnings) -> None:
    if swept.overflows:
        layers = sorted({layer for layer, _ in swept.overflows})
        warnings.say(
            f"{len(swept.overflows)} micro-batch(es) were not finite in the compute dtype, "
            f"first in layer {layers[0]}; they were computed in float32 from there on"
        )


def _measure(
    job: ScoringJob, swept: SweepResult, reader: TensorReader, timer: PhaseTimer, memory: PeakMemory
) -> dict[str, object]:
    sweep_s = timer.seconds["sweep"]
    peak_flop_per_s = job.rates.gemm_flop_per_s * len(job.plan.devices)
    return {
        "seconds": sum(timer.seconds.values()),
        "seconds_by_phase": dict(timer.seconds),
        "weights_wait_s": swept.weights_wait_s,
        "weights_read_s": swept.weights_read_s,
        "tokens_computed": swept.tokens_computed,
        "trie_nodes": job.tree.num_tokens,
        "tokens_per_option_run": job.tokens_per_option_run,
        "truncated_questions": sum(prompt.num_truncated_tokens > 0 for prompt in job.prompts),
        "truncated_context_tokens": sum(prompt.num_truncated_tokens for prompt in job.prompts),
        "bytes_read": reader.num_bytes_read,
        "peak_host_bytes": memory.peak_bytes,
        "baseline_host_bytes": memory.baseline_bytes,
        "memory_bytes": memory.peak_bytes - memory.baseline_bytes,
        "peak_device_bytes": memory.devices(job.plan.devices),
        "tok_per_s": swept.tokens_computed / sweep_s,
        "question_per_s": len(job.prompts) / sweep_s,
        "roofline_fraction": job.plan.flops / (sweep_s * peak_flop_per_s),
        "float32_micro_batches": len(swept.overflows),
    }
