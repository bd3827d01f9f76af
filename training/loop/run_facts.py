"""What train.json says of the way a run went, from the numbers of its steps. Knows no model and no files."""

from __future__ import annotations

from collections.abc import Mapping

from strata.engine.results.machine_facts import package_version
from strata.training.loop.evaluation import evaluations_of
from strata.training.loop.trainer import Trainer

PACKAGES = ("peft", "accelerate", "bitsandbytes", "safetensors", "tensorboard", "wandb")
"""Whose versions train.json tells beside those that every run tells."""


def describe_run(
    trainer: Trainer, seconds_by_phase: Mapping[str, float], peak_host_bytes: int
) -> dict[str, object]:
    """How far a run came, how fast, and with what curves.

    Args:
        trainer: of a run that has ended, whatever the end.
        seconds_by_phase: of the wall clock.
        peak_host_bytes: the largest resident set while it trained.
    """
    lines = [line for line in trainer.lines if "loss" in line]
    seconds = sum(line["seconds"] for line in lines)
    columns = ("step", "loss", "learning_rate", "grad_norm")
    return {
        "steps_done": trainer.progress.step,
        "stopped_early": trainer.has_stopped_early,
        "best_step": trainer.progress.best_step,
        "seconds_by_phase": seconds_by_phase,
        "seconds_in_steps": seconds,
        "examples_per_s": sum(line["examples"] for line in lines) / seconds if seconds else None,
        "peak_host_bytes": peak_host_bytes,
        "history": {column: [line[column] for line in lines] for column in columns},
        "evaluations": evaluations_of(trainer.lines),
        "versions": {name: package_version(name) for name in PACKAGES},
    }
