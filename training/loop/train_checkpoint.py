"""A training run on disk: trained parameters, optimizer state and step, from which it goes on bit by bit.

out/checkpoint-<step>/ holds trainable.safetensors, optimizer.safetensors and state.json. A folder is written
under a temporary name, flushed and renamed, so one with its final name is whole. Knows no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from strata.training.loop.folders import (
    remove_folder_atomically,
    remove_unfinished,
    write_folder_atomically,
)

TRAINABLE, OPTIMIZER, STATE = "trainable.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Where a run stands after `step` optimizer steps.

    Attributes:
        step: steps done.
        best: the best metric of an evaluation so far, the higher the better; None before the first.
        best_step: the step of that evaluation.
        num_evals_without_better: evaluations since then.
        pending: numbers of the last step where the run was stopped before the evaluation that follows it.
    """

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    num_evals_without_better: int = 0
    pending: dict | None = None


def save_checkpoint(
    out: Path,
    progress: TrainProgress,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    fingerprint: Mapping[str, object],
) -> Path:
    """Writes out/checkpoint-<step>, safe on disk when it returns.

    Args:
        out: the run's folder.
        progress: where the run stands.
        parameters: what is trained, by name.
        optimizer: over these parameters.
        fingerprint: plain JSON types, from `fingerprint_run`.

    Returns:
        The folder.

    Raises:
        OutputError: the disk refused; nothing of this checkpoint is left.
    """

    def fill(folder: Path) -> None:
        save_file({name: _on_cpu(tensor) for name, tensor in parameters.items()}, folder / TRAINABLE)
        save_file(_optimizer_tensors(parameters, optimizer), folder / OPTIMIZER)
        text = json.dumps({"progress": asdict(progress), "fingerprint": fingerprint}, indent=1)
        (folder / STATE).write_text(text + "\n", encoding="ascii")

    folder = checkpoint_folder(out, progress.step)
    write_folder_atomically(folder, fill)
    return folder


def checkpoint_folder(out: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return out / f"checkpoint-{step}"


def read_state(folder: Path) -> tuple[TrainProgress, dict[str, object]]:
    """TrainProgress and fingerprint of a checkpoint."""
    state = json.loads((folder / STATE).read_text(encoding="ascii"))
    return TrainProgress(**state["progress"]), state["fingerprint"]


def load_checkpoint(
    folder: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Puts a checkpoint's values into parameters and optimizer, on whatever devices they are.

    Raises:
        ValueError: the parameters are not those that were saved.
    """
    saved = load_file(folder / TRAINABLE)
    if saved.keys() != parameters.keys():
        odd = sorted(saved.keys() ^ parameters.keys())[0]
        raise ValueError(f"{folder}: parameter {odd!r} is not in both checkpoint and model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    _load_optimizer(load_file(folder / OPTIMIZER), parameters, optimizer)


def list_checkpoints(out: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    if not out.is_dir():
        return []
    found = {int(match[1]): path for path in out.iterdir() if (match := _NAME.match(path.name))}
    return [found[step] for step in sorted(found)]


def prune_checkpoints(out: Path, num_kept: int) -> None:
    """Removes all but the newest checkpoints, and what interrupted writes have left."""
    for path in list_checkpoints(out)[:-num_kept]:
        remove_folder_atomically(path)
    remove_unfinished(out)


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def _optimizer_tensors(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}:{key}": _on_cpu(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer(
    saved: Mapping[str, torch.Tensor],
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    states: dict[str, dict[str, torch.Tensor]] = {}
    for full_name, value in saved.items():
        name, _, key = full_name.rpartition(":")
        states.setdefault(name, {})[key] = value
    for name, state in states.items():
        parameter = parameters[name]
        # AdamW keeps its step count on the host, and moments like the parameter.
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
        }
