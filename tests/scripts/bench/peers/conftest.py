"""Checkpoints for the tests of the peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint

from .peer_work import SHAPE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Checkpoints whose attention looks at few tokens: near 0, rotary errors would hardly change a score."""

    @cache
    def build(dtype: str) -> Path:
        folder = make_random_checkpoint(SHAPE, tmp_path_factory.mktemp("peers") / dtype, dtype=dtype)
        tensors = load_file(folder / "model.safetensors")
        for name, tensor in tensors.items():
            factor = 10 if name.endswith(("q_proj.weight", "k_proj.weight")) else 4
            tensors[name] = tensor * factor if "self_attn" in name else tensor
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return build
