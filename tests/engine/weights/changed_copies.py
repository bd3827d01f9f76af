"""Copies of tiny checkpoints with other tensors, and the loader that reads them. Knows no test."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from strata.engine.model.decoder import build_decoder
from strata.engine.model.layer_loader import LayerLoader
from strata.engine.model.weight_routes import route_layers
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.tensor_reader import TensorReader

EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"

QUERY = "model.layers.1.self_attn.q_proj.weight"


def make_loader(checkpoint: Checkpoint, dtype=torch.float32, reader=None) -> LayerLoader:
    routes = route_layers(checkpoint, build_decoder(checkpoint.config, dtype), dtype)
    return LayerLoader(checkpoint, routes, reader or TensorReader())


def convert(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    for name in tensors:
        tensors[name] = tensors[name].to(dtype)


def copy_changed(source: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a single-file checkpoint with its tensors changed in place."""
    folder = shutil.copytree(source, tmp_path / "changed", dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
