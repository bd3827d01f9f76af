"""Scores questions with an encoder that has a multiple-choice head: the job and the artefacts of a decoder.

Flow: questions -> rows (`encoder_input`) -> batches by length -> logits of all members (`encoder_sweep`) ->
scores -> artefacts.
The model is far smaller than the machine: it is loaded whole, once a device.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from strata.engine.config import ScoreConfig
from strata.engine.deadline import parse_duration_s
from strata.engine.encoders.batches import EncoderLane, EncoderSweep
from strata.engine.encoders.encoder import (
    EncoderShape,
    add_adapters,
    first_weights_file,
    load_encoder,
    measure_encoder,
    read_encoder_config,
    stored_dtype,
)
from strata.engine.encoders.rows import EncoderPrompt, EncoderTokenizer, batch_by_length
from strata.engine.machine.devices import (
    GIB,
    device_budget_bytes,
    host_budget_bytes,
    resolve_devices,
    resolve_dtype,
)
from strata.engine.machine.machine import Budgets
from strata.engine.machine.profile import measure_rates
from strata.engine.machine.rates import GEMM_EFFICIENCY, MachineRates
from strata.engine.progress import progress_bar
from strata.engine.questions.metrics import evaluate
from strata.engine.questions.question_file import read_questions
from strata.engine.results.partial_scores import PartialScores, fingerprint_job
from strata.engine.results.peak_memory import PeakMemory, device_peaks, reset_device_peaks
from strata.engine.results.phases import PhaseTimer
from strata.engine.results.report import write_report
from strata.engine.results.run_record import RunRecord
from strata.engine.results.tables import write_prompts, write_scores, write_submission
from strata.engine.run.artefacts import LIBRARY_BYTES, ScoreRun, remove_artefacts
from strata.engine.run.unreached import UNREACHED, collect_scores
from strata.engine.types import InputError, Question, QuestionScores, RunWarnings
from strata.engine.weights.checkpoint_folder import weight_files

HEAD = "multiple-choice"
MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Where the memory allows it: larger ones are no faster."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderJob:
    """A checked and planned job; `prompts` are those still to score, `all_prompts` with those `done`."""

    config: ScoreConfig
    shape: EncoderShape
    questions: list[Question]
    prompts: list[EncoderPrompt]
    all_prompts: list[EncoderPrompt]
    writer: EncoderTokenizer
    devices: tuple[str, ...]
    dtype: torch.dtype
    members: tuple[str, ...]
    batches: list[list[int]]
    micro_batch_tokens: int
    budgets: Budgets
    rates: MachineRates
    fingerprint: str
    done: dict[str, QuestionScores]

    @property
    def num_tokens(self) -> int:
        """Tokens of the rows still to score."""
        return sum(prompt.num_tokens for prompt in self.prompts)

    @property
    def flops(self) -> float:
        """Of these rows and all members, padding aside."""
        rows = (len(branch.token_ids) for prompt in self.prompts for branch in prompt.branches)
        return len(self.members) * sum(map(self.shape.flops, rows))

    @property
    def weight_bytes(self) -> int:
        """Of the model on each device."""
        return self.shape.num_weights * self.dtype.itemsize


def score_with_encoder(config: ScoreConfig) -> ScoreRun:
    """Scores a question file with an encoder and leaves the artefacts in `config.out`.

    Raises:
        InputError: bad input; nothing is left.
        OutputError: an artefact cannot be written; run.json says so where it can.
        FloatingPointError: scores that are not finite even in float32.
    """
    started = perf_counter()
    warnings = RunWarnings(strict=config.strict)
    timer = PhaseTimer()
    with RunRecord(config.out / "run.json", asdict(config), warnings) as record, PeakMemory() as memory:
        job = _prepare(config, warnings, timer)
        record.plan = _describe_plan(job)
        with timer.phase("load"):
            lanes = _open_lanes(job)
        record.begin()
        remove_artefacts(config.out)
        reset_device_peaks(job.devices)
        sweep = _sweep(job, lanes, timer, started)
        scores = collect_scores(job.questions, {**job.done, **sweep.scores}, warnings)
        record.metrics = evaluate(scores)
        with timer.phase("write"):
            _write_artefacts(job, scores)
            if not warnings.rows.get(UNREACHED):
                PartialScores(config.out, job.fingerprint).remove()
        record.measured = _measure(job, sweep, timer, memory)
        _report(job, sweep, record.measured, warnings)
    finished = record.as_dict()
    write_report(config.out / "report.html", finished, scores)
    return ScoreRun(scores=scores, record=finished, out=config.out)


def _prepare(config: ScoreConfig, warnings: RunWarnings, timer: PhaseTimer) -> EncoderJob:
    config.check()
    _refuse_settings(config)
    with timer.phase("read input"):
        questions = read_questions(
            config.questions, context_column=config.context_column, limit=config.limit, warnings=warnings
        )
        shape = measure_encoder(read_encoder_config(config.model))
        devices = resolve_devices(config.devices)
        dtype = resolve_dtype(config.dtype, stored_dtype(config.model), devices)
        members = _member_names(config)
    with timer.phase("tokenize"):
        writer = EncoderTokenizer(config.model, shape, config.max_tokens, warnings, str(config.questions))
        all_prompts = writer.encode(questions)
    fingerprint = fingerprint_job(all_prompts, (config.model.resolve(), HEAD, dtype, *config.adapter))
    done = PartialScores(config.out, fingerprint).read(questions) if config.resume else {}
    with timer.phase("plan"):
        # Were all done, the last one is scored again: a run that computes nothing has nothing to measure.
        prompts = [own for own in all_prompts if own.question.id not in done] or all_prompts[-1:]
        budgets = Budgets(
            device_bytes=device_budget_bytes(devices, config.memory_gib),
            host_bytes=host_budget_bytes(config.host_memory_gib),
        )
        limit = _micro_batch_tokens(config, shape, dtype, devices, budgets)
        lengths = [(len(own.branches), own.longest_tokens) for own in prompts]
        rates = measure_rates(devices, dtype, shape.hidden_size, first_weights_file(config.model))
    return EncoderJob(
        config=config,
        shape=shape,
        questions=questions,
        prompts=prompts,
        all_prompts=all_prompts,
        writer=writer,
        devices=devices,
        dtype=dtype,
        members=members,
        batches=batch_by_length(lengths, limit),
        micro_batch_tokens=limit,
        budgets=budgets,
        rates=rates,
        fingerprint=fingerprint,
        done=done,
    )


def _refuse_settings(config: ScoreConfig) -> None:
    """Refuses what has no meaning for an encoder, or is not done for one."""
    for flag, given, expected in (
        (f"--head {config.head}", config.head != "auto", "auto: its own multiple-choice head"),
        (f"--debias {config.debias}", config.debias != "none", "none: its rows show one option each"),
        (f"--template {config.template}", config.template is not None, "none: its layout is fixed"),
        ("--dtype int8", config.dtype == "int8", "float32, bfloat16 or float16"),
        ("--verify", config.verify, "it left out"),
        ("--cache-dir", config.cache_dir is not None, "it left out: weights are read once"),
        ("--num-groups", config.num_groups is not None, "it left out"),
        ("--resident-layers", config.resident_layers is not None, "it left out: all of them are"),
        ("--hidden-store", config.hidden_store is not None, "it left out"),
    ):
        if given:
            raise InputError(f"{flag}: {config.model} is an encoder; expected {expected}")
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out: {config.out} is a file; expected a folder")
    if config.micro_batch_tokens is not None and config.micro_batch_tokens < 1:
        raise InputError(f"--micro-batch-tokens: {config.micro_batch_tokens}; expected 1 or more")
    if config.max_tokens is not None and config.max_tokens < 1:
        raise InputError(f"--max-tokens {config.max_tokens}: expected at least 1")


def _member_names(config: ScoreConfig) -> tuple[str, ...]:
    names = tuple(path.resolve().name for path in config.adapter)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--adapter: two adapters are called {twice!r}; expected folders of different names")
    return names or ("base",)


def _micro_batch_tokens(
    config: ScoreConfig, shape: EncoderShape, dtype: torch.dtype, devices: Sequence[str], budgets: Budgets
) -> int:
    """Tokens a batch: the user's, else the usual number where weights and activations fit the budget."""
    on_cpu = devices[0] == "cpu"
    copies = len(devices) if on_cpu else 1
    budget = min(budgets.device_bytes, budgets.host_bytes) if on_cpu else budgets.device_bytes
    left = budget - copies * shape.num_weights * dtype.itemsize
    # About what a layer has alive at a time: residual, queries, keys, values, the wide part, in float32.
    fitting = int(left // (copies * 4 * 16 * shape.hidden_size))
    if fitting < shape.window_tokens:
        raise InputError(
            f"--memory-gib: {budget / GIB:.2f} GiB are too few; the encoder's weights take "
            f"{copies * shape.num_weights * dtype.itemsize / GIB:.2f} GiB, expected more than that"
        )
    return config.micro_batch_tokens or min(fitting, MICRO_BATCH_TOKENS["cpu" if on_cpu else "cuda"])


def _open_lanes(job: EncoderJob) -> list[EncoderLane]:
    """One model a device, all adapters on it.

    Raises:
        InputError: weights or adapters that do not fit, or a checkpoint without a choice head.
    """
    config = job.config
    loaded, missing = load_encoder(config.model, job.dtype)
    model: Any = loaded
    if config.adapter:
        model = add_adapters(loaded, config.adapter, missing).to(job.dtype)
    elif missing:
        raise InputError(
            f"{config.model}: a plain encoder, its checkpoint holds no {missing[0]}; expected one with a "
            "trained choice head: make it with strata train --task multiple-choice"
        )
    models = [model, *(copy.deepcopy(model) for _ in job.devices[1:])]
    num_adapters = len(config.adapter)
    return [
        EncoderLane(own.to(name), torch.device(name), job.writer.tokenizer, num_adapters)
        for own, name in zip(models, job.devices, strict=True)
    ]


def _sweep(job: EncoderJob, lanes: Sequence[EncoderLane], timer: PhaseTimer, started: float) -> EncoderSweep:
    config = job.config
    kept = PartialScores(config.out, job.fingerprint)
    kept.start(resume=config.resume)
    deadline = config.deadline
    deadline_s = None if deadline is None else started + parse_duration_s("--deadline", deadline)
    total = job.num_tokens * len(job.members)
    with timer.phase("sweep"), progress_bar("encode", total, shown=config.progress) as advance:
        sweep = EncoderSweep(job.members, kept.add, deadline_s, advance)
        sweep.run(lanes, [[job.prompts[index] for index in batch] for batch in job.batches])
    return sweep


def _write_artefacts(job: EncoderJob, scores: list[QuestionScores]) -> None:
    out = job.config.out
    write_submission(out / "submission.csv", scores)
    write_scores(out / "scores.parquet", scores)
    if job.config.save_prompts:
        write_prompts(out / "prompts.jsonl", map(job.writer.with_texts, job.all_prompts))


def _describe_plan(job: EncoderJob) -> dict[str, object]:
    """The plan as run.json keeps it; an encoder shares no tokens between options."""
    reached = GEMM_EFFICIENCY * job.rates.gemm_flop_per_s * len(job.devices)
    return {
        "head": HEAD,
        "dtype": str(job.dtype).removeprefix("torch."),
        "devices": job.devices,
        "members": list(job.members),
        "window_tokens": job.writer.limit_tokens,
        "micro_batch_tokens": job.micro_batch_tokens,
        "num_micro_batches": len(job.batches),
        "tokens_computed": job.num_tokens * len(job.members),
        "trie_nodes": job.num_tokens,
        "tokens_per_option_run": job.num_tokens,
        "flops": job.flops,
        "sweep_s": job.flops / reached,
        "weight_bytes": job.weight_bytes,
        "budgets": asdict(job.budgets),
        "rates": asdict(job.rates),
    }


def _measure(
    job: EncoderJob, sweep: EncoderSweep, timer: PhaseTimer, memory: PeakMemory
) -> dict[str, object]:
    sweep_s = timer.seconds["sweep"]
    share = sweep.num_tokens / (job.num_tokens * len(job.members))
    peak_flop_per_s = job.rates.gemm_flop_per_s * len(job.devices)
    return {
        "seconds": sum(timer.seconds.values()),
        "seconds_by_phase": dict(timer.seconds),
        "sweep_s": sweep_s,
        "tokens_computed": sweep.num_tokens,
        "padding_tokens": sweep.num_padding_tokens,
        "trie_nodes": job.num_tokens,
        "tokens_per_option_run": job.num_tokens,
        "truncated_questions": sum(prompt.num_truncated_tokens > 0 for prompt in job.all_prompts),
        "truncated_context_tokens": sum(prompt.num_truncated_tokens for prompt in job.all_prompts),
        "bytes_read": sum(path.stat().st_size for path in _weight_files(job.config)),
        "peak_host_bytes": memory.peak_bytes,
        "baseline_host_bytes": memory.baseline_bytes,
        "memory_bytes": memory.peak_bytes - memory.baseline_bytes,
        "peak_device_bytes": device_peaks(job.devices),
        "tok_per_s": sweep.num_tokens / sweep_s,
        "question_per_s": len(sweep.scores) / sweep_s,
        "resumed_questions": len(job.done),
        "roofline_fraction": job.flops * share / (sweep_s * peak_flop_per_s),
        "float32_micro_batches": sweep.num_float32_batches,
    }


def _weight_files(config: ScoreConfig) -> list[Path]:
    adapters = [path / "adapter_model.safetensors" for path in config.adapter]
    return [*weight_files(config.model), *adapters]


def _report(job: EncoderJob, sweep: EncoderSweep, measured: dict[str, object], warnings: RunWarnings) -> None:
    if sweep.num_float32_batches:
        warnings.say(
            f"{sweep.num_float32_batches} micro-batch(es) were not finite in {job.dtype}; "
            "they were computed in float32"
        )
    taken, allowed = measured["memory_bytes"], min(job.budgets.device_bytes, job.budgets.host_bytes)
    assert isinstance(taken, int)
    if job.devices[0] == "cpu" and taken > allowed + LIBRARY_BYTES:
        warnings.say(
            f"the run took {taken / GIB:.2f} GiB beyond its start; its budget was {allowed / GIB:.2f} GiB"
        )
