"""One weight as a checkpoint holds it: a plain tensor, or codes and what decodes them.

Data flow: safetensors headers -> a format's `collect` -> StoredWeight a weight -> the parts' bytes are read
-> `decode` writes the weight in the compute dtype. Each format is one file beside this one and one entry of
`registry.py`; nothing else in the engine knows how a format lies on disk.
Independent check: a transformers model that holds the same decoded weights (tests/engine/weights/formats).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from strata.engine.types import InputError
from strata.engine.weights.safetensors_file import StoredTensor

ReadSmall = Callable[[StoredTensor], torch.Tensor]
"""Reads a small tensor while the checkpoint is opened, such as a shape or a quantisation state."""

SCALE_DTYPES = ("F32", "BF16", "F16")
"""What safetensors calls the dtypes that formats store scales in."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredWeight(ABC):
    """A weight and its stored parts.

    Attributes:
        name: what a plain checkpoint calls it ("model.layers.3.mlp.up_proj.weight").
        shape: of the decoded weight.
        parts: stored tensors by role, in the order in which they are read.
        host_roles: parts whose values decide what is launched: they stay on the host, so that no device has
            to be asked.
    """

    format_name: ClassVar[str]
    host_roles: ClassVar[frozenset[str]] = frozenset()

    name: str
    shape: tuple[int, ...]
    parts: Mapping[str, StoredTensor]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(part.num_bytes for part in self.parts.values())

    @property
    def file(self) -> Path:
        """Where its first part lies."""
        return next(iter(self.parts.values())).file

    @property
    def rows(self) -> StoredTensor | None:
        """The part that alone makes the weight, any of its rows as well as all; None: no such part."""
        return None

    @abstractmethod
    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """Writes the weight.

        Args:
            tensors: the parts by role, in their stored dtypes and shapes, on one device but for `host_roles`.
            out: [shape] in a floating dtype on that device; written whole.

        Returns:
            `out`.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainWeight(StoredWeight):
    """A floating-point tensor stored as it is."""

    format_name = "plain"

    @property
    def tensor(self) -> StoredTensor:
        """The one part."""
        return self.parts["weight"]

    @property
    def rows(self) -> StoredTensor | None:
        """The one part."""
        return self.tensor

    @property
    def dtype(self) -> torch.dtype:
        """Its floating-point dtype.

        Raises:
            InputError: it is stored in another kind of dtype.
        """
        return self.tensor.floating_dtype

    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """Converts the dtype."""
        return out.copy_(tensors["weight"])


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelInt8Weight(StoredWeight):
    """Signed bytes "codes" [N, K] and a "scale" an output channel: weight = scale_factor * scale * codes.

    What `--dtype int8` computes with as it is.

    Attributes:
        scale_factor: 1, or what the format leaves out of its scales.
    """

    format_name = "int8"

    scale_factor: float = 1.0

    def codes_and_scale(self, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight in int8.

        Args:
            tensors: the parts by role; "scale" [N], [N, 1], or of one element for all channels.

        Returns:
            int8 codes [N, K], the tensor itself, and float32 scales [N] with which weight = scale * codes.
        """
        scale = tensors["scale"].reshape(-1).float()
        if self.scale_factor != 1.0:
            scale = scale * self.scale_factor
        return tensors["codes"], scale.expand(self.shape[0]).contiguous()

    def decode(self, tensors: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """codes times scale, rounded once."""
        from strata.kernels.dequant.int8 import dequantize_channels

        return dequantize_channels(*self.codes_and_scale(tensors), out)


def plain_weight(tensor: StoredTensor) -> PlainWeight:
    """A stored tensor as a weight of its own name."""
    return PlainWeight(name=tensor.name, shape=tensor.shape, parts={"weight": tensor})


def take_parts(
    stored: Mapping[str, StoredTensor],
    module: str,
    required: Mapping[str, str],
    optional: Mapping[str, str] | None = None,
) -> dict[str, StoredTensor]:
    """The parts of one module's weight by role.

    Args:
        stored: every tensor of the checkpoint by name.
        module: name of the module ("model.layers.3.mlp.up_proj").
        required: role -> suffix after the module's name (".qweight").
        optional: the same for parts that may be absent.

    Raises:
        InputError: a required one is absent.
    """
    parts: dict[str, StoredTensor] = {}
    for role, suffix in required.items():
        if module + suffix not in stored:
            codes = next(iter(parts.values()), None)
            where = f"{codes.file}: tensor {codes.name}" if codes else module
            raise InputError(f"{where} needs {module + suffix}, which the checkpoint does not hold")
        parts[role] = stored[module + suffix]
    for role, suffix in (optional or {}).items():
        if module + suffix in stored:
            parts[role] = stored[module + suffix]
    return parts


def modules_with(stored: Mapping[str, StoredTensor], suffixes: Sequence[str]) -> list[str]:
    """Names of the modules that hold any tensor with one of the suffixes (".qweight"), in stored order."""
    found = (name.removesuffix(suffix) for name in stored for suffix in suffixes if name.endswith(suffix))
    return list(dict.fromkeys(found))


def expect_dtype(tensor: StoredTensor, *expected: str) -> None:
    """Checks a part's dtype against those that safetensors names so ("I32").

    Raises:
        InputError: it is another one.
    """
    if tensor.dtype not in expected:
        raise InputError(
            f"{tensor.file}: tensor {tensor.name} has dtype {tensor.dtype}; expected {' or '.join(expected)}"
        )


def expect_matrix(tensor: StoredTensor) -> None:
    """Checks that a part has two axes.

    Raises:
        InputError: it has another number of them.
    """
    if len(tensor.shape) != 2:
        raise InputError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}; expected a matrix"
        )


def expect_shape(tensor: StoredTensor, expected: tuple[int, ...]) -> None:
    """Checks a part's shape.

    Raises:
        InputError: it is another one.
    """
    if tensor.shape != expected:
        raise InputError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}; expected {list(expected)}"
        )
