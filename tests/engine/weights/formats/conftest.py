"""Owns the quantised checkpoints of these tests: a tiny plain one, its linear weights stored otherwise."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .layouts import LAYOUTS
from .words import Layout


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantised checkpoint, the plain one of the same decoded weights, and those weights by name."""

    path: Path
    decoded: Path
    weights: dict[str, Tensor]


@pytest.fixture(scope="session")
def quantized(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory):
    """`quantized(layout name, family="llama-gqa")` -> Quantized, made on first use; leave it as it is."""

    @functools.cache
    def build(layout: str, family: str = "llama-gqa") -> Quantized:
        return quantize(checkpoint(family), tmp_path_factory.mktemp(layout), LAYOUTS[layout])

    return build


@pytest.fixture
def damaged(quantized: Callable[..., Quantized], tmp_path: Path) -> Callable[..., Path]:
    """`damaged(layout name, tensors={name: tensor or None}, settings={...})` -> a copy with these changed."""

    def build(layout: str, tensors: dict[str, Tensor | None] | None = None, **settings: object) -> Path:
        folder = tmp_path / layout
        shutil.copytree(quantized(layout).path, folder)
        stored = load_file(folder / "model.safetensors") | (tensors or {})
        kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= settings
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return build


def quantize(plain: Path, folder: Path, layout: Layout) -> Quantized:
    """Writes both checkpoints of a layout; every matrix of a decoder layer but a router's is quantised."""
    tensors = load_file(plain / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    stored, weights = {}, {}
    for name, tensor in sorted(tensors.items()):
        if ".layers." in name and tensor.ndim == 2 and not name.endswith(".gate.weight"):
            parts, weights[name] = layout.pack(tuple(tensor.shape), generator)
            module = name.removesuffix(".weight")
            stored |= {module + suffix: part for suffix, part in parts.items()}
        else:
            stored[name] = tensor
    path = _write(plain, folder / "quantized", stored)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": layout.settings}))
    decoded = _write(plain, folder / "decoded", tensors | weights)
    return Quantized(path=path, decoded=decoded, weights=weights)


def _write(plain: Path, folder: Path, tensors: dict[str, Tensor]) -> Path:
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
