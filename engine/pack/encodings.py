"""How one weight is written: as it is, in another dtype, in int8, or in NF4. Knows nothing of files.

An encoding says beforehand which tensors it will leave, so that files can be laid out, and later makes them
from the stored parts of the weight. Layouts: int8 is compressed-tensors' "int-quantized" (codes [N, K], a
float32 scale an output channel); NF4 is what bitsandbytes' QuantState.as_dict(packed=True) gives.
Independent check: bitsandbytes and compressed-tensors themselves (tests/engine/pack/test_pack.py).
Legend: N outputs, K inputs of a linear weight.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from strata.engine.pack.calibrated import InputMoments
from strata.engine.pack.safetensors_writer import TensorSpec
from strata.engine.types import InputError
from strata.engine.weights.formats.stored_weight import PlainWeight, StoredWeight
from strata.engine.weights.safetensors_file import FLOATING_DTYPES
from strata.kernels.dequant.four_bit_encode import NF4_QUANT_MAP, quantize_absmax, quantize_nf4
from strata.kernels.int8_linear.compensated import quantize_weight_compensated
from strata.kernels.int8_linear.quantize import quantize_weight

NF4_BLOCK = 64
"""Weights that share a scale."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own."""
SLICE_ELEMENTS = 1 << 21
"""Weights that one thread encodes at a time; whole blocks."""
MAX_THREADS = 8
"""Threads that encode one weight; each takes some 20 MB."""
LONGEST_FLOAT = 24
"""Characters of the longest double in JSON."""
Parts = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding(ABC):
    """One stored weight and how it will be written."""

    weight: StoredWeight

    @property
    @abstractmethod
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors it leaves."""

    @abstractmethod
    def encode(self, parts: Parts) -> tuple[torch.Tensor, ...]:
        """Values of `specs`, in that order.

        Args:
            parts: the weight's stored tensors by role.

        Raises:
            InputError: the weight holds what cannot be written so.
        """

    def _spec(self, suffix: str, dtype: torch.dtype, *shape: int) -> TensorSpec:
        return TensorSpec(name=self.weight.name + suffix, dtype=dtype, shape=shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptTensor(Encoding):
    """A plain tensor, byte for byte."""

    weight: PlainWeight

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensor itself."""
        return (self._spec("", self.weight.tensor.torch_dtype, *self.weight.shape),)

    def encode(self, parts: Parts) -> tuple[torch.Tensor, ...]:
        """The tensor itself."""
        return (parts["weight"],)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvertedTensor(Encoding):
    """A plain tensor in another floating dtype, or a quantised weight decoded into one."""

    dtype: torch.dtype

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """One tensor."""
        return (self._spec("", self.dtype, *self.weight.shape),)

    def encode(self, parts: Parts) -> tuple[torch.Tensor, ...]:
        """The tensor, rounded once.

        Raises:
            InputError: a value overflows the dtype.
        """
        out = self.weight.decode(parts, torch.empty(self.weight.shape, dtype=self.dtype))
        source = parts["weight"] if isinstance(self.weight, PlainWeight) else None
        if _overflows(source, out):
            largest = torch.finfo(self.dtype).max
            raise InputError(
                f"{self.weight.file}: tensor {self.weight.name} holds values beyond {largest:g}, the largest "
                f"of {str(self.dtype).removeprefix('torch.')}; expected another --format: bf16 or fp32"
            )
        return (out,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Matrix(Encoding):
    """X.weight int8 [N, K] and X.weight_scale float32 [N, 1]; `moments` of its inputs guide the rounding."""

    moments: InputMoments | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Codes, scales."""
        num_outputs = self.weight.shape[0]
        return (
            self._spec("", torch.int8, *self.weight.shape),
            self._spec("_scale", torch.float32, num_outputs, 1),
        )

    def encode(self, parts: Parts) -> tuple[torch.Tensor, ...]:
        """Codes, scales; weight is about scale * codes."""
        dense = _dense(self.weight, parts)
        if self.moments is None:
            codes, scale = quantize_weight(dense)
        else:
            codes, scale = quantize_weight_compensated(dense, self.moments.blocks)
        return codes, scale[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Nf4Matrix(Encoding):
    """bitsandbytes' parts of an NF4 weight; `dtype` is what its loader decodes into.

    Unlike there, the JSON of the quantisation state ends in spaces: its length must not depend on values.
    """

    dtype: torch.dtype
    double_quant: bool

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Codes, scales, the tables that decode them, and the JSON that tells of them."""
        size = torch.Size(self.weight.shape).numel()
        num_blocks = -(-size // NF4_BLOCK)
        nested = (
            self._spec(".nested_absmax", torch.float32, -(-num_blocks // NESTED_BLOCK)),
            self._spec(".nested_quant_map", torch.float32, 256),
        )
        return (
            self._spec("", torch.uint8, -(-size // 2), 1),
            self._spec(".absmax", torch.uint8 if self.double_quant else torch.float32, num_blocks),
            self._spec(".quant_map", torch.float32, 16),
            *(nested if self.double_quant else ()),
            self._spec(".quant_state.bitsandbytes__nf4", torch.uint8, self._state_bytes),
        )

    def encode(self, parts: Parts) -> tuple[torch.Tensor, ...]:
        """The tensors of `specs`."""
        packed, absmax = _quantize_in_slices(_dense(self.weight, parts))
        quant_map = torch.as_tensor(NF4_QUANT_MAP, dtype=torch.float32)
        if not self.double_quant:
            return packed, absmax, quant_map, self._state(None)
        codes, nested_map, nested_absmax, offset = quantize_absmax(absmax, NESTED_BLOCK)
        return packed, codes, quant_map, nested_absmax, nested_map, self._state(float(offset))

    @property
    def _state_bytes(self) -> int:
        longest = len(self._state_json(0.0 if self.double_quant else None))
        return longest + (LONGEST_FLOAT if self.double_quant else 0)

    def _state(self, offset: float | None) -> torch.Tensor:
        text = self._state_json(offset).ljust(self._state_bytes).encode("ascii")
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def _state_json(self, offset: float | None) -> str:
        state: dict[str, object] = {
            "quant_type": "nf4",
            "blocksize": NF4_BLOCK,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.weight.shape),
        }
        if offset is not None:
            state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
        return json.dumps(state)


def store_plain(weight: StoredWeight, dtype: torch.dtype) -> Encoding:
    """A weight in a floating dtype; what is no floating-point number stays as it is."""
    if isinstance(weight, PlainWeight) and weight.tensor.dtype not in FLOATING_DTYPES:
        return KeptTensor(weight=weight)
    if isinstance(weight, PlainWeight) and weight.dtype == dtype:
        return KeptTensor(weight=weight)
    return ConvertedTensor(weight=weight, dtype=dtype)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Lets operations run on one core each: the encoders' blocks are too small to share one.

    Measured on two cores that others use too: int8 334 MB/s instead of 34, NF4 56 instead of 23.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _dense(weight: StoredWeight, parts: Parts) -> torch.Tensor:
    """The matrix to quantise: as stored where that is a dtype of 16 or 32 bits, else in float32."""
    if isinstance(weight, PlainWeight) and weight.dtype != torch.float64:
        dense = parts["weight"]
    else:
        dense = weight.decode(parts, torch.empty(weight.shape, dtype=torch.float32))
    if not _is_finite(dense):
        raise InputError(
            f"{weight.file}: tensor {weight.name} holds NaN or infinity; expected finite numbers to quantise"
        )
    return dense


def _quantize_in_slices(dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """quantize_nf4 on all cores: a slice holds whole blocks, which do not depend on each other."""
    slices = dense.reshape(-1).split(SLICE_ELEMENTS)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        encoded = list(pool.map(lambda part: quantize_nf4(part[None], NF4_BLOCK), slices))
    return torch.cat([packed for packed, _ in encoded]), torch.cat([absmax for _, absmax in encoded])


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    # One pass without scratch: both bounds are NaN if any value is.
    bounds = torch.stack(torch.aminmax(tensor))
    return bool(bounds.isfinite().all())


def _overflows(source: torch.Tensor | None, out: torch.Tensor) -> bool:
    """Whether a conversion made infinities; `source` None stands for finite numbers."""
    if _is_finite(out):
        return False
    return source is None or bool((out.isinf() & source.isfinite()).any())
