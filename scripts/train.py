"""`strata train`: reads the data, opens the model, trains it, prints what came out.

Under torchrun or `accelerate launch` every process runs this; the main one writes and prints.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Protocol, cast, runtime_checkable

from rich.console import Console

from strata.engine.folder_lock import lock_folder
from strata.engine.results.peak_memory import PeakMemory
from strata.engine.results.run_record import RunRecord
from strata.engine.types import InputError, RunWarnings
from strata.retrieval.corpus.pages import read_pages
from strata.scripts.score import describe_metrics, print_warnings
from strata.training.config import TrainConfig
from strata.training.data.passages import LanguageReader, read_passages
from strata.training.data.text_set import read_text_set
from strata.training.data.training_set import TrainingSet, read_training_set
from strata.training.loop.evaluation import evaluations_of, last_evaluation
from strata.training.loop.processes import Processes, close_processes, open_processes
from strata.training.loop.run_facts import describe_run
from strata.training.loop.train_log import check_sinks
from strata.training.loop.train_report import REPORT_NAME, leave_train_report
from strata.training.loop.trainer import Trainer
from strata.training.open_reader import open_reader, quiet_libraries
from strata.training.types import Reader

RECORD_NAME = "train.json"


@runtime_checkable
class Closeable(Protocol):
    """A reader that holds threads or files."""

    def close(self) -> None:
        """Gives back what the reader holds."""
        ...


@runtime_checkable
class Warned(Protocol):
    """A reader that collects warnings."""

    warnings: RunWarnings


def run_train(config: TrainConfig) -> int:
    """Trains and prints a summary. Returns the exit status."""
    config.check()
    check_packages(config)
    check_paths(config)
    check_sinks(config)
    if config.plan:
        return print_plan(config)
    processes = open_processes(config)
    with ExitStack() as stack:
        record = None
        if processes.is_main_process:
            stack.enter_context(lock_folder(config.out, "--out"))
            # Before the record, so that it comes after it: the page says how the run ended.
            report = stack.enter_context(ExitStack())
            record = stack.enter_context(RunRecord(config.out / RECORD_NAME, asdict(config)))
            report.callback(report_training, config.out, record)
        trainer = train(config, processes, record, stack)
    close_processes(processes)
    if record is not None:
        print_warnings(record.as_dict()["warnings"])
        print_summary(config, trainer)
    return 0


def print_plan(config: TrainConfig) -> int:
    """Memory of a step, time of a run: headers of the checkpoint and a sample of the questions are read."""
    if config.task in ("lm", "multiple-choice"):
        raise InputError(
            f"--plan: task {config.task}; expected binary, contrast, choice, letters or classify"
        )
    quiet_libraries()
    from strata.training.run_plan import plan_run

    for line in plan_run(config, read_data(config, RunWarnings())).describe():
        print(line)
    return 0


def train(config: TrainConfig, processes: Processes, record: RunRecord | None, stack: ExitStack) -> Trainer:
    """Runs a training, recorded by the main process; `stack` closes what it has opened."""
    warnings = RunWarnings() if record is None else record.warnings
    data = None if config.task == "lm" else read_data(config, warnings)
    started = perf_counter()
    reader = open_reader(config)
    if isinstance(reader, Closeable):
        stack.enter_context(closing(reader))
    if data is None:
        data = read_lm_set(config, reader)
    trainer = Trainer(config, reader, data, processes)
    trainer.start()
    if record is None:
        trainer.run()
    else:
        run_recorded(trainer, record, started)
    return trainer


def read_data(config: TrainConfig, warnings: RunWarnings) -> TrainingSet:
    """The questions or texts of any task but lm."""
    read = read_text_set if config.task == "classify" else read_training_set
    return read(config, warnings)


def run_recorded(trainer: Trainer, record: RunRecord, started: float) -> None:
    """Takes the steps; `record` is filled before them, and once more when they end, whatever the end.

    Args:
        trainer: ready to run.
        record: of this run, not yet begun.
        started: `perf_counter()` when the model began to be opened.
    """
    record.plan = trainer.describe()
    record.begin()
    print_start(record.plan)
    opened_s = perf_counter() - started
    memory = PeakMemory()
    try:
        with memory:
            trainer.run()
    finally:
        seconds_by_phase = {"open": opened_s, "train": perf_counter() - started - opened_s}
        record.measured = describe_run(trainer, seconds_by_phase, memory.peak_bytes)
        record.metrics = last_evaluation(trainer.lines)
        add_warnings(record.warnings, trainer.reader)


def report_training(out: Path, record: RunRecord) -> None:
    """Leaves report.html of a run that has taken steps, whatever its end."""
    if record.measured:
        leave_train_report(out, record.as_dict())


def read_lm_set(config: TrainConfig, reader: Reader) -> TrainingSet:
    """The passages of a corpus as training set."""
    assert config.passages is not None
    valid_texts = None if config.valid is None else read_texts(config.valid)
    return read_passages(config, read_texts(config.passages), valid_texts, cast(LanguageReader, reader))


def read_texts(path: Path) -> Iterator[str]:
    """Title and text of every page, a line between them."""
    for page in read_pages([path]):
        yield f"{page.title}\n{page.text}" if page.title else page.text


def check_packages(config: TrainConfig) -> None:
    """Raises InputError when a package of the extra `train` is missing that the run needs."""
    for package, purpose, is_needed, other in (
        ("peft", "LoRA", not config.full, "--full, which trains all weights"),
        ("bitsandbytes", "--base-storage nf4", config.base_storage == "nf4", "--base-storage auto"),
    ):
        if is_needed and importlib.util.find_spec(package) is None:
            raise InputError(
                f'{purpose} needs the package {package}; expected: pip install "strata-score[train]" '
                f"(or {other})"
            )


def check_paths(config: TrainConfig) -> None:
    """Raises InputError when a file that is to be read is missing, or --out is a file."""
    for flag, path in (
        ("--model", config.model),
        ("--questions", config.questions),
        ("--passages", config.passages),
        ("--valid", config.valid),
        ("--soft-labels", config.soft_labels),
        ("--labels", config.labels),
        ("--adapter", config.adapter),
    ):
        if path is not None and not path.exists():
            raise InputError(f"{flag}: {path} not found")
    existing = next((folder for folder in (config.out, *config.out.parents) if folder.exists()), None)
    if existing is not None and not existing.is_dir():
        raise InputError(f"--out: {existing} is a file; expected a folder")


def add_warnings(warnings: RunWarnings, reader: Reader) -> None:
    """Adds what the reader has found; the same question, met every epoch, counts once."""
    if not isinstance(reader, Warned):
        return
    for kind, ids in reader.warnings.rows.items():
        warnings.rows[kind] = list(dict.fromkeys([*warnings.rows.get(kind, []), *ids]))
    for message in reader.warnings.messages:
        warnings.say(message)


def print_start(plan: Mapping[str, object]) -> None:
    """What is going to be trained, and in which dtype."""
    Console(highlight=False).print(
        f"training {plan['trained_parameters']:,} parameters in {plan['dtype']}, {plan['num_steps']} step(s)"
    )


def print_summary(config: TrainConfig, trainer: Trainer) -> None:
    """Loss, metrics and where the results are."""
    console = Console(highlight=False)
    lines, progress = trainer.lines, trainer.progress
    if lines and "loss" in lines[-1]:
        console.print(f"step {progress.step} of {trainer.num_steps}, loss {lines[-1]['loss']:.4f}")
    if trainer.has_stopped_early:
        console.print(f"stopped early: {config.early_stop} evaluation(s) without a better one")
    evaluations = evaluations_of(lines)
    if len(evaluations) > 1 and evaluations[0]["step"] == 0:
        console.print(f"before training: {describe_evaluation(evaluations[0])}", soft_wrap=True)
    if evaluations:
        console.print(describe_evaluation(evaluations[-1]), soft_wrap=True)
    if progress.best_step is not None:
        console.print(
            f"best evaluation at step {progress.best_step}: {config.out / 'best'}",
            markup=False,
            soft_wrap=True,
        )
    name = "model" if config.full else "adapter"
    files = f"{name}, log.jsonl, {RECORD_NAME}, {REPORT_NAME}"
    console.print(f"{files} in {config.out}", markup=False, soft_wrap=True)


def describe_evaluation(found: dict) -> str:
    """One line of an evaluation, heuristics beside it."""
    if "map_at_3" not in found:
        return f"validation loss {found['loss']:.4f}, perplexity {found['perplexity']:.2f}"
    return f"validation {describe_metrics(found)}, loss {found['loss']:.4f}"
