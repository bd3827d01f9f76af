"""What decides the weights a run ends with: settings, data, model. Two runs with equal fingerprints agree.

A resumed run is compared with the interrupted one field by field, so that the refusal can name what differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch

from strata.engine.files import to_json
from strata.engine.types import InputError
from strata.training.config import TrainConfig
from strata.training.data.training_set import TrainingSet

FREE_FIELDS = frozenset(
    {
        "out",
        "resume",
        "progress",
        "eval_first",
        "tensorboard",
        "wandb",
        "save_every",
        "keep_checkpoints",
        "devices",
        "memory_gib",
        "boundary_store",
        "micro_batch_tokens",
        "gradient_checkpointing",
    }
)
"""Settings that may change at --resume: they decide where and how fast, not what is computed."""
CONTENT_FIELDS = ("model", "adapter", "template", "shots")
"""Settings that name files: what is in them counts, not where they are."""
DATA_FIELDS = ("questions", "passages", "valid", "soft_labels", "labels")
"""Settings whose files are in the digest of the data."""


def fingerprint_run(config: TrainConfig, data: TrainingSet, dtype: torch.dtype) -> dict[str, object]:
    """Everything that decides the trained weights, as plain JSON types by name of the field.

    Args:
        config: the run's settings.
        data: what it learns from.
        dtype: what it computes in, which --dtype auto leaves to the device.
    """
    skipped = FREE_FIELDS.union(CONTENT_FIELDS, DATA_FIELDS)
    prints = {
        field.name: to_json(getattr(config, field.name))
        for field in fields(config)
        if field.name not in skipped
    }
    prints["dtype"] = dtype_name(dtype)
    prints["questions" if config.passages is None else "passages"] = data.train.fingerprint()
    prints["valid"] = None if data.valid is None else data.valid.fingerprint()
    prints["model"] = _digest_model(config.model)
    prints["adapter"] = None if config.adapter is None else _digest_model(config.adapter)
    prints["template"] = _text_of(config.template)
    prints["shots"] = None if config.shots is None else _text_of(str(config.shots))
    return prints


def check_same_run(saved: Mapping[str, object], current: Mapping[str, object], folder: Path) -> None:
    """Raises InputError naming the first setting in which a checkpoint's run differs from this one."""
    for name in dict.fromkeys([*current, *saved]):
        if saved.get(name) != current.get(name):
            told = f"{saved.get(name)!r}, now {current.get(name)!r}"
            if name in CONTENT_FIELDS + DATA_FIELDS:
                told = "other content"
            raise InputError(
                f"--resume: {folder} is from a run with another --{name.replace('_', '-')} ({told}); "
                "expected the flags and files of the interrupted run"
            )


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as --dtype names it, such as float32."""
    return str(dtype).removeprefix("torch.")


def _digest_model(folder: Path) -> str:
    """Of its settings whole, of its weights names and sizes: reading those would take too long."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.json")):
        digest.update(file.name.encode() + file.read_bytes())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()


def _text_of(name: str | None) -> str | None:
    """A file's text; a name that is of no file, such as a built-in template's, itself."""
    if name is None or not Path(name).is_file():
        return name
    return Path(name).read_text(encoding="utf-8", errors="replace")
