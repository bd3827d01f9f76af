"""A packed folder's tensors, decoded by the engine and by definitions of the formats apart from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from safetensors.torch import load_file

from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader
from strata.kernels.dequant.four_bit import dequantize_absmax
from strata.kernels.dequant.reference import reference_4bit, reference_channels

STATE = ".quant_state.bitsandbytes__nf4"

Tensors = dict[str, torch.Tensor]

Pack = Callable[..., Path]


def read_all(folder: Path) -> Tensors:
    """Every tensor of a checkpoint folder."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def decode_all(folder: Path) -> Tensors:
    """Every weight of a checkpoint by its stored name, decoded by strata into float32."""
    weights = [weight for source in open_checkpoint(folder).weights.values() for weight, _ in source.parts]
    with closing(TensorReader()) as reader:
        return {
            weight.name: weight.decode(
                {role: reader.read(part) for role, part in weight.parts.items()}, torch.empty(weight.shape)
            )
            for weight in weights
        }


def decode_by_reference(folder: Path) -> Tensors:
    """The same from the stored tensors, with the kernels' slow references."""
    stored = read_all(folder)
    decoded = {}
    for name, tensor in stored.items():
        if name + STATE in stored:
            decoded[name] = _reference_nf4(name, stored)
        elif name + "_scale" in stored:
            decoded[name] = reference_channels(tensor, stored[name + "_scale"][:, 0]).float()
        elif ".weight." not in name and not name.endswith("_scale"):
            decoded[name] = tensor.float()
    return decoded


def _reference_nf4(name: str, stored: Tensors) -> torch.Tensor:
    state = json.loads(bytes(stored[name + STATE].tolist()))
    absmax = stored[name + ".absmax"]
    if "nested_offset" in state:
        absmax = dequantize_absmax(
            absmax,
            stored[name + ".nested_quant_map"],
            stored[name + ".nested_absmax"],
            state["nested_blocksize"],
            state["nested_offset"],
        )
    quant_map, shape = stored[name + ".quant_map"], tuple(state["shape"])
    return reference_4bit(stored[name], absmax, quant_map, state["blocksize"], shape).float()


def same_bytes(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal dtype, shape and bits; NaN equals itself."""
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
    )
