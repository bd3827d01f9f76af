"""The main job: from a question file to the artefacts of a run. Composes the stages; each is elsewhere.

prepare (read, render, plan) -> sweep (readouts) -> head (scores) -> artefacts (submission.csv,
scores.parquet, run.json, report.html, prompts.jsonl on request). Encoders: see `encoder_score`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from time import perf_counter

from strata.engine.config import ScoreConfig
from strata.engine.deadline import parse_duration_s
from strata.engine.encoders.encoder import is_encoder
from strata.engine.progress import progress_bar
from strata.engine.questions.metrics import evaluate
from strata.engine.results.partial_scores import PartialScores
from strata.engine.results.peak_memory import PeakMemory, device_peaks, reset_device_peaks
from strata.engine.results.phases import PhaseTimer
from strata.engine.results.report import write_report
from strata.engine.results.run_record import RunRecord
from strata.engine.run.artefacts import ScoreRun, _report_memory, _write_artefacts, remove_artefacts
from strata.engine.run.decoder_job import describe_plan, prepare_job
from strata.engine.run.int8_check import check_int8
from strata.engine.run.unreached import UNREACHED, collect_scores
from strata.engine.scorer import GroupScorer, ScoringJob
from strata.engine.sweep.sweep import SweepResult, run_sweep
from strata.engine.types import QuestionScores, RunWarnings
from strata.engine.weights.byte_sources import ByteSource, FileSource
from strata.engine.weights.checksums import read_checksums
from strata.engine.weights.read_cache import CachedSource
from strata.engine.weights.tensor_reader import TensorReader


def score_questions(config: ScoreConfig) -> ScoreRun:
    """Scores a question file and leaves the artefacts in `config.out`.

    Raises:
        InputError: bad input; nothing is left.
        OutputError: an artefact cannot be written; run.json says so where it can.
        FloatingPointError: hidden states that are not finite even in float32.
    """
    if is_encoder(config.model):
        # Here, as that module takes the artefacts' functions from this one.
        from strata.engine.run.encoder_job import score_with_encoder

        return score_with_encoder(config)
    started = perf_counter()
    warnings = RunWarnings(strict=config.strict)
    timer = PhaseTimer()
    with RunRecord(config.out / "run.json", asdict(config), warnings) as record, PeakMemory() as memory:
        job = prepare_job(config, warnings, timer)
        record.plan = describe_plan(job)
        record.begin()
        remove_artefacts(config.out)
        reset_device_peaks(job.plan.devices)
        source = _open_source(config)
        with closing(_open_reader(job, source)) as reader:
            _verify_partly_read(job, reader, timer)
            swept, by_id = _sweep(job, reader, timer, started)
        scores = collect_scores(job.questions, by_id, warnings)
        record.metrics = evaluate(scores)
        with timer.phase("write"):
            _write_artefacts(job, scores)
            if not warnings.rows.get(UNREACHED):
                PartialScores(config.out, job.fingerprint).remove()
        record.measured = _measure(job, swept, reader, timer, memory)
        record.measured |= _measure_cache(source, warnings)
        if job.plan.linear == "int8" and config.int8_check_questions:
            record.measured["int8_check"] = _check_int8(job, by_id, source, timer, started)
        _report_overflows(swept, warnings)
        _report_memory(job, record.measured, warnings)
    finished = record.as_dict()
    write_report(config.out / "report.html", finished, scores)
    return ScoreRun(scores=scores, record=finished, out=config.out)


def _open_source(config: ScoreConfig) -> ByteSource:
    return FileSource() if config.cache_dir is None else CachedSource(FileSource(), config.cache_dir)


def _open_reader(job: ScoringJob, source: ByteSource) -> TensorReader:
    return TensorReader(source, read_checksums(job.checkpoint.path) if job.config.verify else None)


def _verify_partly_read(job: ScoringJob, reader: TensorReader, timer: PhaseTimer) -> None:
    """Checks embedding and projection whole: of these, a job reads some rows only."""
    if not job.config.verify:
        return
    with timer.phase("verify"):
        for name in ("embed_tokens.weight", job.checkpoint.output_embedding):
            if name is not None:
                reader.verify(job.checkpoint.require_plain(name))


def _check_int8(
    job: ScoringJob,
    by_id: Mapping[str, QuestionScores],
    source: ByteSource,
    timer: PhaseTimer,
    started: float,
) -> dict[str, object]:
    """Compares a sample of the scores with those of dense weights."""
    scored = {
        prompt.question.id: by_id[prompt.question.id] for prompt in job.prompts if prompt.question.id in by_id
    }
    with timer.phase("int8 check"):
        return check_int8(job, scored, job.config.int8_check_questions, source, _deadline_s(job, started))


def _deadline_s(job: ScoringJob, started: float) -> float | None:
    deadline = job.config.deadline
    return None if deadline is None else started + parse_duration_s("--deadline", deadline)


def _sweep(
    job: ScoringJob, reader: TensorReader, timer: PhaseTimer, started: float
) -> tuple[SweepResult, dict[str, QuestionScores]]:
    """Sweeps group after group; each one's questions are scored and saved as it ends."""
    config = job.config
    kept = PartialScores(config.out, job.fingerprint)
    kept.start(resume=config.resume)
    scorer = GroupScorer(job, reader, kept.add, _deadline_s(job, started))
    total = job.tree.num_tokens * job.checkpoint.num_layers * len(job.sweep.members)
    with timer.phase("sweep"), progress_bar("sweep", total, shown=config.progress) as advance:
        swept = run_sweep(job.sweep, reader, config.out, advance, scorer.finish_group)
    timer.seconds["sweep"] -= scorer.heads_s
    timer.seconds["heads"] = scorer.heads_s
    return swept, {**job.done, **scorer.scores}


def _report_overflows(swept: SweepResult, warnings: RunWarnings) -> None:
    if swept.overflows:
        layers = sorted({layer for layer, _ in swept.overflows})
        warnings.say(
            f"{len(swept.overflows)} micro-batch(es) were not finite in the compute dtype, "
            f"first in layer {layers[0]}; they were computed in float32 from there on"
        )


def _measure_cache(source: ByteSource, warnings: RunWarnings) -> dict[str, object]:
    """What the read-through cache did; nothing without one."""
    if not isinstance(source, CachedSource):
        return {}
    if source.stopped_because is not None:
        warnings.say(f"--cache-dir: caching stopped: {source.stopped_because}")
    return {"bytes_from_cache": source.num_bytes_from_cache, "bytes_kept_in_cache": source.num_bytes_kept}


def _measure(
    job: ScoringJob, swept: SweepResult, reader: TensorReader, timer: PhaseTimer, memory: PeakMemory
) -> dict[str, object]:
    sweep_s = timer.seconds["sweep"]
    peak_flop_per_s = job.rates.gemm_flop_per_s * len(job.plan.devices)
    return {
        "seconds": sum(timer.seconds.values()),
        "seconds_by_phase": dict(timer.seconds),
        "sweep_s": sweep_s,
        "weights_wait_s": swept.weights_wait_s,
        "weights_read_s": swept.weights_read_s,
        "tokens_computed": swept.tokens_computed,
        "trie_nodes": job.tree.num_tokens,
        "tokens_per_option_run": job.tokens_per_option_run,
        "truncated_questions": sum(prompt.num_truncated_tokens > 0 for prompt in job.all_prompts),
        "truncated_context_tokens": sum(prompt.num_truncated_tokens for prompt in job.all_prompts),
        "bytes_read": reader.num_bytes_read,
        "bytes_verified": reader.num_bytes_verified,
        "peak_host_bytes": memory.peak_bytes,
        "baseline_host_bytes": memory.baseline_bytes,
        "memory_bytes": memory.peak_bytes - memory.baseline_bytes,
        "peak_device_bytes": device_peaks(job.plan.devices),
        "tok_per_s": swept.tokens_computed / sweep_s,
        "question_per_s": len(job.prompts) / sweep_s,
        "resumed_questions": len(job.done),
        "roofline_fraction": job.plan.flops
        * swept.tokens_computed
        / job.plan.tokens
        / (sweep_s * peak_flop_per_s),
        "float32_micro_batches": len(swept.overflows),
    }
