"""What a run leaves in its folder: files of answers, and run.json's account of what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from strata.engine.config import ScoreConfig
from strata.engine.jobs.job import Job, Measured
from strata.engine.json_files import read_json_object
from strata.engine.machine.devices import GIB
from strata.engine.results.peak_memory import PeakMemory, device_peaks
from strata.engine.results.phases import PhaseTimer
from strata.engine.results.tables import (
    write_label_submission,
    write_prompts,
    write_scores,
    write_submission,
)
from strata.engine.run.collapse import describe_collapse, find_collapse
from strata.engine.types import InputError, Prompt, QuestionScores, RunWarnings
from strata.engine.weights.byte_sources import ByteSource
from strata.engine.weights.read_cache import CachedSource

MAY_COLLAPSE = ("letters", "yes-no")
"""Heads that read labels, of which an untrained model may always prefer the same."""
LIBRARY_BYTES = 128 << 20
"""What libraries take in a run's first second (thread pools, GEMM kernels), not part of the budget."""


def check_out(out: Path) -> None:
    """Raises InputError where --out, or a folder above it, is a file."""
    existing = next((folder for folder in (out, *out.parents) if folder.exists()), None)
    if existing is not None and not existing.is_dir():
        raise InputError(f"--out: {existing} is a file; expected a folder")


def describe_adapter_settings(config: ScoreConfig) -> dict[str, dict[str, dict[str, object]]]:
    """What was not given and is as adapters were trained, by the adapter's folder; nothing if nothing is."""
    taken = {str(adapter): found for adapter, found in config.settings_of_adapters().items() if found}
    return {"adapter_settings": taken} if taken else {}


def check_unfinished(out: Path, *, may_replace: bool) -> None:
    """Raises InputError where --out holds a finished run that nobody said may go."""
    record = out / "run.json"
    if may_replace or not record.is_file():
        return
    if read_json_object(record).get("status") == "done":
        raise InputError(
            f"--out: {out} holds a finished run; expected --overwrite (or --resume), or another folder"
        )


def remove_artefacts(out: Path) -> None:
    """Removes what an earlier run left: a folder never holds artefacts of two runs."""
    for name in ("submission.csv", "scores.parquet", "report.html", "timeline.json", "prompts.jsonl"):
        (out / name).unlink(missing_ok=True)


def write_artefacts(
    out: Path,
    scores: Sequence[QuestionScores],
    prompts: Iterable[Prompt] | None,
    submission: Literal["best", "probabilities"] = "best",
) -> None:
    """Leaves submission.csv (see ScoreConfig) and scores.parquet, and with prompts prompts.jsonl."""
    write = write_submission if submission == "best" else write_label_submission
    write(out / "submission.csv", scores)
    write_scores(out / "scores.parquet", scores)
    if prompts is not None:
        write_prompts(out / "prompts.jsonl", prompts)


def describe_measured(job: Job, timer: PhaseTimer, memory: PeakMemory) -> dict[str, object]:
    """What run.json keeps of a job: its account, seconds by phase, memory, and rates."""
    measured, sweep_s = job.measure(), timer.seconds["sweep"]
    return {
        "seconds": sum(timer.seconds.values()),
        "seconds_by_phase": dict(timer.seconds),
        "sweep_s": sweep_s,
        **_counts(measured),
        "peak_host_bytes": memory.peak_bytes,
        "baseline_host_bytes": memory.baseline_bytes,
        "memory_bytes": memory.peak_bytes - memory.baseline_bytes,
        "peak_device_bytes": device_peaks(job.machine.devices),
        "tok_per_s": measured.tokens_computed / sweep_s,
        "question_per_s": measured.num_questions / sweep_s,
        **_compare_with_roofline(job, measured, sweep_s),
    }


def _compare_with_roofline(job: Job, measured: Measured, sweep_s: float) -> dict[str, object]:
    """The share of the GEMM roofline, 1 at most: one that was exceeded was measured too low."""
    seen, rates = measured.roofline, job.machine.rates
    if seen is None:
        roofline, source = rates.gemm_flop_per_s * len(job.machine.devices), rates.rates_from
    else:
        roofline, source = seen.flop_per_s, seen.source
    computing_s = sweep_s - (seen.between_s if seen else 0.0)
    return {
        "roofline_fraction": min(1.0, measured.flops / (computing_s * roofline)),
        "roofline_flop_per_s": roofline,
        "roofline_from": source,
    }


def _counts(measured: Measured) -> dict[str, object]:
    """Only what the kind of model has: no tree, no streamed weights, no padding where there are none."""
    counts: dict[str, object] = {
        "tokens_computed": measured.tokens_computed,
        "bytes_read": measured.bytes_read,
        "float32_micro_batches": measured.float32_micro_batches,
        "halved_micro_batches": measured.halved_micro_batches,
    }
    for part in (measured.prefix_sharing, measured.weight_stream):
        counts |= {} if part is None else asdict(part)
    return counts if measured.padding_tokens is None else counts | {"padding_tokens": measured.padding_tokens}


def describe_prompts(prompts: Sequence[Prompt]) -> dict[str, int]:
    """How many questions have contexts, how many of these were shortened, and by how much."""
    return {
        "questions_with_context": sum(bool(prompt.question.context) for prompt in prompts),
        "truncated_questions": sum(prompt.num_truncated_tokens > 0 for prompt in prompts),
        "truncated_context_tokens": sum(prompt.num_truncated_tokens for prompt in prompts),
    }


def describe_answers(
    scores: Sequence[QuestionScores], head: object, debias: str, warnings: RunWarnings
) -> dict[str, object]:
    """How many questions have each option (label) first; a warning where one position is throughout."""
    if head in MAY_COLLAPSE and debias == "none" and (collapse := find_collapse(scores)) is not None:
        warnings.say(describe_collapse(collapse, str(head)))
    counts = Counter(row.question.name_of(row.order[0]) for row in scores)
    return {"best_option_counts": dict(sorted(counts.items()))}


def describe_cache(source: ByteSource, warnings: RunWarnings) -> dict[str, object]:
    """What the read-through cache did; nothing without one."""
    if not isinstance(source, CachedSource):
        return {}
    if source.stopped_because is not None:
        warnings.say(f"--cache-dir: caching stopped: {source.stopped_because}")
    return {"bytes_from_cache": source.num_bytes_from_cache, "bytes_kept_in_cache": source.num_bytes_kept}


def report_oddities(job: Job, memory_bytes: int, warnings: RunWarnings) -> None:
    """Says what a user should know of a run's numbers and memory."""
    measured = job.measure()
    for message in filter(None, (measured.overflow, measured.halving)):
        warnings.say(message)
    budgets = job.machine.budgets
    allowed = min(budgets.device_bytes, budgets.host_bytes)
    if job.machine.on_cpu and memory_bytes > allowed + LIBRARY_BYTES:
        warnings.say(
            f"the run took {memory_bytes / GIB:.2f} GiB beyond its start; "
            f"its budget was {allowed / GIB:.2f} GiB"
        )
