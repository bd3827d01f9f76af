"""Where a run's curves go: log.jsonl, and TensorBoard and Weights & Biases where wanted. Knows no model."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from strata.engine.files import to_json, write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json_lines
from strata.engine.types import InputError
from strata.training.config import TrainConfig

LOG_NAME = "log.jsonl"

Write = Callable[[int, dict], None]
"""Told of a step's numbers."""


class Sink(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, numbers: Mapping[str, object]) -> None:
        """Takes them; numbers of an evaluation come as a mapping among them."""
        ...

    def close(self) -> None:
        """Keeps what was taken; nothing is taken afterwards."""
        ...


class _Step(Schema):
    """What must be in a line."""

    step: int


class StepLog:
    """log.jsonl: a JSON object a step, `step` first, an `evaluation` in it where there was one.

    Args:
        path: the file; lines after `num_steps` steps, or cut off by a crash, are dropped.
        num_steps: steps that the run has already done.

    Raises:
        InputError: a line that is no JSON object with a step (names the line).
    """

    def __init__(self, path: Path, num_steps: int) -> None:
        written = read_json_lines(path) if path.is_file() else []
        self.lines = [line for place, line in written if check_schema(_Step, line, place).step <= num_steps]
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_text_atomically(path, text)
        self._file = path.open("a", encoding="ascii")

    def write(self, step: int, numbers: Mapping[str, object]) -> None:
        """Appends a step's line, visible to others when it returns."""
        line = {"step": step} | {name: to_json(value) for name, value in numbers.items()}
        self.lines.append(line)
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file, its lines safe on disk."""
        os.fsync(self._file.fileno())
        self._file.close()


class TensorBoardSink:
    """Curves in a folder for `tensorboard --logdir`; those after `num_steps` steps are forgotten."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=num_steps + 1 if num_steps else None)

    def write(self, step: int, numbers: Mapping[str, object]) -> None:
        """A point of every curve."""
        for name, value in flat_numbers(numbers).items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        """Writes what is waiting."""
        self._writer.close()


class WandbSink:
    """Curves in a Weights & Biases project."""

    def __init__(self, config: TrainConfig) -> None:
        import wandb

        self._run = wandb.init(project=config.wandb, dir=str(config.out), config=to_json(asdict(config)))

    def write(self, step: int, numbers: Mapping[str, object]) -> None:
        """A point of every curve."""
        self._run.log(flat_numbers(numbers), step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


def flat_numbers(numbers: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings by names such as evaluation/map_at_3."""
    flat: dict[str, float] = {}
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            flat[prefix + name] = float(value)
    return flat


def check_sinks(config: TrainConfig) -> None:
    """Raises InputError when a logger that was asked for is not installed."""
    for flag, package, is_wanted in (
        ("--tensorboard yes", "tensorboard", config.tensorboard == "yes"),
        ("--wandb", "wandb", config.wandb is not None),
    ):
        if is_wanted and importlib.util.find_spec(package) is None:
            raise InputError(
                f"{flag}: the package {package} is not installed; expected: pip install {package}"
            )


def open_sinks(config: TrainConfig, num_steps: int) -> list[Sink]:
    """TensorBoard and Weights & Biases, as far as wanted; `num_steps` are done already."""
    sinks: list[Sink] = []
    if config.tensorboard != "no" and importlib.util.find_spec("tensorboard") is not None:
        sinks.append(TensorBoardSink(config.out / "tensorboard", num_steps))
    if config.wandb is not None:
        sinks.append(WandbSink(config))
    return sinks


@contextmanager
def tell_everywhere(config: TrainConfig, num_steps: int, *, told: bool) -> Iterator[tuple[list[dict], Write]]:
    """Yields the lines of log.jsonl, which grow, and what writes a step's numbers there and to all curves.

    Args:
        config: the run's settings.
        num_steps: steps that are logged already.
        told: whether anything is written; otherwise there are no lines.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        lines: list[dict] = []
        if told:
            log = StepLog(config.out / LOG_NAME, num_steps)
            lines, sinks = log.lines, [log, *open_sinks(config, num_steps)]
        for sink in sinks:
            stack.callback(sink.close)

        def write(step: int, numbers: dict) -> None:
            known = {name: value for name, value in numbers.items() if value is not None}
            for sink in sinks:
                sink.write(step, known)

        yield lines, write


def describe_loss(lines: Sequence[dict]) -> str:
    """The loss of the last step and the MAP@3 of the last evaluation, as far as there are any."""
    losses = [f"loss {line['loss']:.4f}" for line in lines[-1:] if "loss" in line]
    evaluation: dict | None = next(
        (line["evaluation"] for line in reversed(lines) if "evaluation" in line), None
    )
    found = None if evaluation is None else evaluation.get("map_at_3")
    return ", ".join(losses if found is None else [*losses, f"MAP@3 {found:.3f}"])
