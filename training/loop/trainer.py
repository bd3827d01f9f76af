"""The training loop: batches -> gradients -> AdamW, with evaluations, checkpoints and curves along the way.

A step is a pure function of its number, the seed and the weights before it, so that a run that was killed
goes on from a checkpoint to the very weights it would have reached. Knows readers by their protocol alone.

    evaluate
    for step: batch(step) -> accumulate_gradients -> average over processes -> clip -> AdamW
              -> evaluate? -> best? -> log -> checkpoint?
    Ctrl-C: the steps that are done become a checkpoint
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

from strata.engine.progress import Advance, progress_bar
from strata.engine.types import InputError
from strata.training.config import TrainConfig
from strata.training.data.batch_order import BatchOrder, step_seed
from strata.training.data.training_set import TrainingSet
from strata.training.loop.best_weights import link_best, prune_best, remove_best, save_best
from strata.training.loop.described_folder import describe_trained
from strata.training.loop.evaluation import Evaluator, metric_of
from strata.training.loop.fingerprint import check_same_run, dtype_name, fingerprint_run
from strata.training.loop.folders import remove_tree, write_folder_atomically
from strata.training.loop.memory_limit import told_when_memory_runs_out
from strata.training.loop.optimizer import (
    build_optimizer,
    clip_gradients,
    parameters_by_name,
    set_learning_rate,
)
from strata.training.loop.processes import (
    OneProcess,
    Processes,
    average_gradients,
    share_of,
    share_parameters,
)
from strata.training.loop.schedule import learning_rate_factor
from strata.training.loop.train_checkpoint import (
    TrainProgress,
    checkpoint_folder,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    read_state,
    save_checkpoint,
)
from strata.training.loop.train_log import LOG_NAME, Write, describe_loss, tell_everywhere
from strata.training.tasks import count_units
from strata.training.types import Example, Reader


class Trainer:
    """Trains a reader on a training set; what is left in `config.out` is written by the main process.

    Args:
        config: checked.
        reader: what learns; changed in place.
        data: what it learns from.
        processes: who shares the batches.

    Attributes:
        progress: where the run stands.
        lines: the numbers of each step so far, as in log.jsonl; in the main process only.
    """

    def __init__(
        self, config: TrainConfig, reader: Reader, data: TrainingSet, processes: Processes | None = None
    ) -> None:
        self.config, self.reader, self.data = config, reader, data
        self.processes = OneProcess() if processes is None else processes
        self.order = BatchOrder(
            num_examples=len(data.train), batch_size=config.batch_questions, seed=config.seed
        )
        self.num_steps = self.order.count_steps(epochs=config.epochs, max_steps=config.max_steps)
        self.num_warmup_steps = int(config.warmup_share * self.num_steps)
        groups = list(reader.parameter_groups())
        self.parameters = parameters_by_name(groups)
        self.optimizer = build_optimizer(groups, weight_decay=config.weight_decay)
        self.evaluator = self._make_evaluator()
        self.fingerprint = fingerprint_run(config, data, reader.dtype)
        self.progress = TrainProgress()
        self.lines: list[dict] = []
        self._is_updating = False

    def describe(self) -> dict:
        """What is going to happen, for train.json."""
        return {
            "num_steps": self.num_steps,
            "steps_per_epoch": self.order.steps_per_epoch,
            "num_warmup_steps": self.num_warmup_steps,
            "num_train": len(self.data.train),
            "num_valid": None if self.data.valid is None else len(self.data.valid),
            "dtype": dtype_name(self.reader.dtype),
            "num_processes": self.processes.num_processes,
            "trained_parameters": sum(parameter.numel() for parameter in self.parameters.values()),
            "first_step": self.progress.step,
        }

    def start(self) -> None:
        """Goes to where a resumed run left off; changes no file.

        Raises:
            InputError: checkpoints that are not to be resumed, or of another run.
        """
        checkpoints = list_checkpoints(self.config.out)
        if checkpoints and not self.config.resume:
            raise InputError(
                f"--out: {self.config.out} holds checkpoints of an earlier run; "
                "expected --resume, or another folder"
            )
        if checkpoints:
            saved, fingerprint = read_state(checkpoints[-1])
            check_same_run(fingerprint, self.fingerprint, checkpoints[-1])
            load_checkpoint(checkpoints[-1], self.parameters, self.optimizer)
            self.progress = saved
        share_parameters(self.parameters.values(), self.processes)

    def run(self) -> None:
        """Takes all steps that are left, then saves the adapter (or model) in the run's folder.

        Raises:
            FloatingPointError: a loss, gradient or score that is not finite; the message names the step.
            OutputError: a file cannot be written.
            MemoryRanOutError: a step does not fit.
        """
        if self.processes.is_main_process:
            self._clear_folder()
        with told_when_memory_runs_out(self.config), self._telling() as (write, advance):
            try:
                self._take_steps(write, advance)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._keep_steps_done()) from None
        self._save("model" if self.config.full else "adapter")

    def _take_steps(self, write: Write, advance: Advance) -> None:
        if self.progress.step == 0 and self.config.eval_first and self.evaluator is not None:
            write(0, {"evaluation": self.evaluator.evaluate()})
        if self.progress.pending is not None:
            self._end_step(self.progress.pending, write)
        while self.progress.step < self.num_steps and not self.has_stopped_early:
            numbers = self._take_step(self.progress.step)
            self.progress = replace(self.progress, step=self.progress.step + 1, pending=numbers)
            self._is_updating = False
            self._end_step(numbers, write)
            advance(1)

    def _end_step(self, numbers: dict, write: Write) -> None:
        evaluation = self._evaluate() if self._is_due(self.config.eval_every, at_end=True) else None
        write(self.progress.step, {**numbers, "evaluation": evaluation})
        self.progress = replace(self.progress, pending=None)
        if self._is_due(self.config.save_every, at_end=False):
            self._save_checkpoint()

    def _keep_steps_done(self) -> str:
        """Saves a checkpoint of a run that is stopped; returns how to go on from it, if there is one.

        Not where the optimizer was at work, whose parameters are then of two steps, nor twice of one step.
        """
        out, step = self.config.out, self.progress.step
        saved = list_checkpoints(out)
        is_saved = bool(saved) and saved[-1] == checkpoint_folder(out, step)
        if self.processes.is_main_process and step and not (self._is_updating or is_saved):
            saved.append(
                save_checkpoint(out, self.progress, self.parameters, self.optimizer, self.fingerprint)
            )
        return f"{saved[-1]} is whole; the same command with --resume goes on from it" if saved else ""

    @property
    def has_stopped_early(self) -> bool:
        """Whether evaluations have not become better for as long as --early-stop waits."""
        patience = self.config.early_stop
        return bool(patience) and self.progress.num_evals_without_better >= patience

    def _take_step(self, step: int) -> dict:
        started = perf_counter()
        epoch, indices = self.order.batch(step)
        share = share_of(indices, self.processes)
        batch = self.data.train.read(self.reader, share, epoch=epoch)
        loss = self._accumulate(batch, step)
        norm = clip_gradients(self.parameters, self.config.max_grad_norm, step + 1)
        factor = learning_rate_factor(
            step,
            num_steps=self.num_steps,
            num_warmup_steps=self.num_warmup_steps,
            schedule=self.config.schedule,
        )
        set_learning_rate(self.optimizer, self.config.learning_rate * factor)
        self._is_updating = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "epoch": epoch,
            "loss": loss,
            "learning_rate": self.config.learning_rate * factor,
            "grad_norm": norm,
            "examples": len(indices),
            "seconds": perf_counter() - started,
        }

    def _accumulate(self, batch: Sequence[Example], step: int) -> float:
        """Mean loss of the batch over all processes, whose mean gradient every one then has."""
        loss, weight = 0.0, 0.0
        if batch:
            seed = step_seed(self.config.seed, step, self.processes.process_index)
            loss = self.reader.accumulate_gradients(batch, seed=seed)
            weight = count_units(self.config.task, batch)
        loss = average_gradients(self.parameters.values(), loss, weight, self.processes)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"step {step + 1}: the loss is {loss}; try a lower --learning-rate or --dtype float32"
            )
        return loss

    def _evaluate(self) -> dict | None:
        """Measures on the validation set and keeps the weights if there are none better."""
        if self.evaluator is None:
            return None
        measured = self.evaluator.evaluate()
        metric = metric_of(measured)
        if self.progress.best is not None and metric <= self.progress.best:
            num_evals = self.progress.num_evals_without_better + 1
            self.progress = replace(self.progress, num_evals_without_better=num_evals)
            return measured
        if self.processes.is_main_process:
            save_best(self.config.out, partial(self._write_trained, measured=measured), self.progress.step)
        self.processes.wait_for_everyone()
        self.progress = replace(
            self.progress, best=metric, best_step=self.progress.step, num_evals_without_better=0
        )
        return measured

    def _save_checkpoint(self) -> None:
        if self.processes.is_main_process:
            save_checkpoint(self.config.out, self.progress, self.parameters, self.optimizer, self.fingerprint)
            prune_checkpoints(self.config.out, self.config.keep_checkpoints)
            prune_best(self.config.out, self.progress.best_step)
        self.processes.wait_for_everyone()

    def _save(self, name: str) -> None:
        if self.processes.is_main_process:
            write_folder_atomically(self.config.out / name, self._write_trained)
        self.processes.wait_for_everyone()

    def _write_trained(self, folder: Path, measured: dict | None = None) -> None:
        """Fills a folder with what was trained, and what to know of it; `measured`: not yet in `lines`."""
        self.reader.save(folder)
        latest = [] if measured is None else [{"step": self.progress.step, "evaluation": measured}]
        describe_trained(folder, self.config, self.describe(), [*self.lines, *latest], self.progress.step)

    def _is_due(self, every: int, *, at_end: bool) -> bool:
        is_end = self.progress.step == self.num_steps
        return (at_end and is_end) or bool(every and self.progress.step % every == 0)

    def _make_evaluator(self) -> Evaluator | None:
        if self.data.valid is None:
            return None
        return Evaluator(
            self.reader,
            self.data.valid,
            limit=self.config.eval_limit,
            task=self.config.task,
            processes=self.processes,
        )

    def _clear_folder(self) -> None:
        """Leaves nothing that could be taken for a result of this run."""
        out = self.config.out
        for name in ("adapter", "model"):
            remove_tree(out / name)
        if self.progress.step == 0:
            remove_best(out)
            for name in (LOG_NAME, "tensorboard"):
                remove_tree(out / name)
        else:
            link_best(out, self.progress.best_step)

    @contextmanager
    def _telling(self) -> Iterator[tuple[Write, Advance]]:
        """Yields what takes a step's numbers, and what moves the bar; only the main process does either."""
        is_main, config, step = self.processes.is_main_process, self.config, self.progress.step
        with ExitStack() as stack:
            lines, write = stack.enter_context(
                tell_everywhere(config, step - (self.progress.pending is not None), told=is_main)
            )
            self.lines = lines
            note = partial(describe_loss, lines)
            shown = config.progress and is_main
            advance = stack.enter_context(progress_bar("training", self.num_steps, shown=shown, note=note))
            advance(step)
            yield write, advance
