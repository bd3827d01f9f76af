"""How a linear weight of a random checkpoint is stored in each quantised format: names, shapes, random fills.

Codes are random bits and scales are set so that decoded weights have about the standard deviation of a plain
random checkpoint. The layouts are those of the libraries that write them (see kernels/dequant/README.md).
Knows nothing of files.

Legend: a weight is [N, K]; formats with groups have one scale for each 128 inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Storage = Literal["nf4", "int8", "bnb8", "gptq", "awq", "int4", "fp8"]
STORAGES: tuple[Storage, ...] = ("nf4", "int8", "bnb8", "gptq", "awq", "int4", "fp8")
GROUP = 128
NF4_BLOCK = 64
NESTED_BLOCK = 256
BYTE_STD = 74.0
"""Standard deviation of a uniform signed byte."""
NIBBLE_STD = 4.6
STD = 0.02

QUANTIZATION_CONFIGS: dict[Storage, dict[str, Any]] = {
    "nf4": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "bnb8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False},
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
    },
    "fp8": {"quant_method": "fp8", "weight_block_size": [GROUP, GROUP], "activation_scheme": "dynamic"},
    "int8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            }
        },
        "ignore": ["lm_head"],
    },
    "int4": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": GROUP,
                },
            }
        },
        "ignore": ["lm_head"],
    },
}


@dataclass(frozen=True, kw_only=True)
class RandomTensor:
    """A stored tensor to make: its shape, torch dtype by name, and its content from random bytes."""

    shape: tuple[int, ...]
    dtype: str
    fill: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Makes the tensor from its random bytes viewed as it; None takes the bytes as they are."""


def linear_tensors(storage: Storage, weight_name: str, size: tuple[int, int]) -> dict[str, RandomTensor]:
    """The stored tensors of one linear weight [N, K] by name."""
    module = weight_name.removesuffix(".weight")
    return {module + suffix: tensor for suffix, tensor in LAYOUTS[storage](*size).items()}


def stored_bits(storage: Storage) -> float:
    """About how many bits a weight takes, scales included; at most 3% too many, for checks of free disk."""
    return {"nf4": 4.13, "int8": 8.05, "bnb8": 8.05, "fp8": 8.05}.get(storage, 4.3)


def _constant(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.fill_(value)


def _nf4(n: int, k: int) -> dict[str, RandomTensor]:
    from strata.kernels.dequant.four_bit_encode import NF4_QUANT_MAP

    num_blocks = n * k // NF4_BLOCK
    state = {
        "quant_type": "nf4",
        "blocksize": NF4_BLOCK,
        "dtype": "bfloat16",
        "shape": [n, k],
        "nested_blocksize": NESTED_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": 2 * STD,
    }
    text = json.dumps(state).encode()
    return {
        ".weight": RandomTensor(shape=(n * k // 2, 1), dtype="uint8"),
        ".weight.absmax": RandomTensor(shape=(num_blocks,), dtype="uint8"),
        ".weight.quant_map": RandomTensor(
            shape=(16,), dtype="float32", fill=lambda tensor: tensor.copy_(_as_tensor(NF4_QUANT_MAP))
        ),
        ".weight.nested_absmax": RandomTensor(
            shape=(-(-num_blocks // NESTED_BLOCK),), dtype="float32", fill=_constant(STD / 2)
        ),
        ".weight.nested_quant_map": RandomTensor(shape=(256,), dtype="float32", fill=_spread),
        ".weight.quant_state.bitsandbytes__nf4": RandomTensor(
            shape=(len(text),), dtype="uint8", fill=lambda tensor: tensor.copy_(_as_tensor(list(text)))
        ),
    }


def _int8(n: int, k: int) -> dict[str, RandomTensor]:
    return {
        ".weight": RandomTensor(shape=(n, k), dtype="int8", fill=lambda tensor: tensor.clamp_(min=-127)),
        ".weight_scale": RandomTensor(shape=(n, 1), dtype="float32", fill=_constant(STD / BYTE_STD)),
    }


def _bnb8(n: int, k: int) -> dict[str, RandomTensor]:
    return {
        ".weight": RandomTensor(shape=(n, k), dtype="int8", fill=lambda tensor: tensor.clamp_(min=-127)),
        ".SCB": RandomTensor(shape=(n,), dtype="float32", fill=_constant(127 * STD / BYTE_STD)),
    }


def _gptq(n: int, k: int) -> dict[str, RandomTensor]:
    import torch

    return {
        ".qweight": RandomTensor(shape=(k // 8, n), dtype="int32"),
        ".qzeros": RandomTensor(shape=(k // GROUP, n // 8), dtype="int32", fill=_constant(0x77777777)),
        ".scales": RandomTensor(shape=(k // GROUP, n), dtype="float16", fill=_constant(STD / NIBBLE_STD)),
        ".g_idx": RandomTensor(
            shape=(k,), dtype="int32", fill=lambda tensor: tensor.copy_(torch.arange(k) // GROUP)
        ),
    }


def _awq(n: int, k: int) -> dict[str, RandomTensor]:
    return {
        ".qweight": RandomTensor(shape=(k, n // 8), dtype="int32"),
        ".qzeros": RandomTensor(shape=(k // GROUP, n // 8), dtype="int32", fill=_constant(0x77777777)),
        ".scales": RandomTensor(shape=(k // GROUP, n), dtype="float16", fill=_constant(STD / NIBBLE_STD)),
    }


def _int4(n: int, k: int) -> dict[str, RandomTensor]:
    return {
        ".weight_packed": RandomTensor(shape=(n, k // 8), dtype="int32"),
        ".weight_scale": RandomTensor(
            shape=(n, k // GROUP), dtype="bfloat16", fill=_constant(STD / NIBBLE_STD)
        ),
        ".weight_shape": RandomTensor(
            shape=(2,), dtype="int64", fill=lambda tensor: tensor.copy_(_as_tensor([n, k]))
        ),
    }


def _fp8(n: int, k: int) -> dict[str, RandomTensor]:
    import torch

    return {
        # Without the highest exponent bit there is no NaN, and values stay below 2.
        ".weight": RandomTensor(
            shape=(n, k),
            dtype="float8_e4m3fn",
            fill=lambda tensor: (tensor.view(torch.uint8) & 0xBF).view(torch.float8_e4m3fn),
        ),
        ".weight_scale_inv": RandomTensor(
            shape=(-(-n // GROUP), -(-k // GROUP)), dtype="float32", fill=_constant(2 * STD)
        ),
    }


def _spread(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.copy_(torch.linspace(-1, 1, len(tensor)))


def _as_tensor(values: Any) -> torch.Tensor:
    import torch

    return torch.as_tensor(values)


LAYOUTS: dict[Storage, Callable[[int, int], dict[str, RandomTensor]]] = {
    "nf4": _nf4,
    "int8": _int8,
    "bnb8": _bnb8,
    "gptq": _gptq,
    "awq": _awq,
    "int4": _int4,
    "fp8": _fp8,
}
