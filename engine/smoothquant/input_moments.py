"""How the inputs of a decoder's linear modules go together on real questions, heard while a sweep runs.

Modules that are given the very same tensor (q, k and v; gate and up) share what is heard of it. Peak memory:
MOMENTS_BYTES. Independent check: transformers' activations (tests/engine/smoothquant).
Legend: T tokens, K inputs, B of a block.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from strata.engine.pack.calibrated import InputMoments

MOMENTS_BYTES = 2 << 30
"""Of all moments: where whole ones take more, they are kept for blocks of inputs."""
SMALLEST_BLOCK = 32


def block_inputs(layers: Sequence[nn.Module], max_bytes: int = MOMENTS_BYTES) -> int:
    """B: as many inputs as the widest linear module has, or the power of two with which all moments fit."""
    widths = [
        module.in_features for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)
    ]
    widest = max(widths, default=SMALLEST_BLOCK)
    if sum(4 * width * width for width in widths) <= max_bytes:
        return widest
    block = 1 << (widest.bit_length() - 1)
    while block > SMALLEST_BLOCK and 4 * block * sum(widths) > max_bytes:
        block //= 2
    return block


@dataclass(kw_only=True, eq=False)
class MomentsListener:
    """Hears the linear modules of one layer of one worker."""

    path: str
    block: int
    readers: dict[str, list[str]] = field(default_factory=dict)
    blocks: dict[str, torch.Tensor] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    _last: tuple[weakref.ref[torch.Tensor], str] | None = None

    def listen(self, layer: nn.Module) -> None:
        """Begins; it ends with the module."""
        for path, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._hook(path))

    def found(self) -> list[InputMoments]:
        """Moments of every input that was heard."""
        return [
            InputMoments(
                linears=tuple(f"{self.path}.{path}" for path in paths),
                num_inputs=self.widths[first],
                blocks=self.blocks[first],
            )
            for first, paths in self.readers.items()
        ]

    def _hook(self, path: str) -> Callable[..., None]:
        def hear(module: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0]
            if self._last is not None and self._last[0]() is x:
                readers = self.readers[self._last[1]]
                readers.extend([] if path in readers else [path])
                return
            self._last = (weakref.ref(x), path)
            self.readers.setdefault(path, [path])
            self.widths[path] = x.shape[-1]
            self._add(path, x.reshape(-1, x.shape[-1]).float())

        return hear

    def _add(self, path: str, x_TK: torch.Tensor) -> None:
        block = min(self.block, x_TK.shape[1])
        x_TK = torch.nn.functional.pad(x_TK, (0, -x_TK.shape[1] % block))
        x_NTB = x_TK.view(len(x_TK), -1, block).transpose(0, 1)
        moments = (x_NTB.transpose(1, 2) @ x_NTB).cpu()
        self.blocks[path] = self.blocks[path] + moments if path in self.blocks else moments
