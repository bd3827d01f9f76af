"""Packs of four small files, stopped on the way; what they leave. Knows no test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from strata.engine.pack.config import PackConfig
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.pack.safetensors_writer import SafetensorsWriter

SHARD_GIB = 40_000 / 2**30

NUM_FILES = 4

FIRST = f"model-00001-of-0000{NUM_FILES}.safetensors"


def changed(config: PackConfig, **settings) -> PackConfig:
    return PackConfig(**{name: getattr(config, name) for name in config.__dataclass_fields__} | settings)


def partial_of(config: PackConfig) -> Path:
    return config.out.with_name("out.partial")


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Makes the n-th tensor written raise."""
    write, numbers = SafetensorsWriter.write, iter(range(1, 10_000))

    def failing(self, name, tensor):
        if next(numbers) == number:
            raise error
        write(self, name, tensor)

    monkeypatch.setattr(SafetensorsWriter, "write", failing)


def interrupt(config: PackConfig, monkeypatch: pytest.MonkeyPatch, number: int = 100) -> set[str]:
    """Stops a pack at the n-th tensor; returns the finished files."""
    with monkeypatch.context() as patch:
        fail_at(patch, number, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            pack_checkpoint(config)
    assert not config.out.exists()
    assert list(partial_of(config).glob(".*")) == []
    return {file.name for file in partial_of(config).glob("*.safetensors")}
