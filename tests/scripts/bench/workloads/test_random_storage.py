"""Random checkpoints in the storage formats: the engine reads them, and decodes weights of the usual size."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from strata.engine.model.decoder import build_decoder
from strata.engine.model.layer_loader import make_loader
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.random_storage import STORAGES

from ..small_shape import SMALL


@pytest.mark.parametrize("storage", STORAGES)
def test_random_storages_are_read_and_decode_to_weights_of_the_usual_size(storage, tmp_path):
    path = make_random_checkpoint(SMALL, tmp_path / storage, storage=storage)
    opened = open_checkpoint(path)
    loader = make_loader(opened, build_decoder(opened.config), torch.float32, TensorReader())
    weights = loader.load(1)
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            assert 0.005 < weight.std() < 0.05, name
            assert torch.isfinite(weight).all()
    stored = load_file(path / "model.safetensors")
    assert len(stored) > len(weights) * SMALL.num_layers
    with pytest.raises(InputError, match="storage"):
        make_random_checkpoint(SMALL, tmp_path / storage)


def test_unknown_storage(tmp_path):
    with pytest.raises(InputError, match="expected one of nf4"):
        make_random_checkpoint(SMALL, tmp_path / "x", storage="q2")  # type: ignore[arg-type]
