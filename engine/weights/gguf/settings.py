"""The metadata of one architecture in a GGUF file: what was read of it, and what nobody read.

Knows no config.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from strata.engine.types import InputError
from strata.engine.weights.gguf.header import GgufHeader

SILENT_KEYS = frozenset(
    {
        "attention.value_length",
        "rope.dimension_count",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
    }
)
"""Keys that change nothing, or go with others that are read."""

FREQUENCY_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
FACTOR_TENSORS = (FREQUENCY_FACTORS, LONG_FACTORS, SHORT_FACTORS)
"""Tensors of the file that belong to the config: one number a rotary frequency."""


@dataclass(frozen=True, kw_only=True)
class GgufSettings:
    """What a file says, as transformers' config class is given it.

    Attributes:
        header: of the file.
        architecture: `general.architecture`.
        tensor_names: of all files of a split model.
        factors: what the FACTOR_TENSORS among them hold.
        used: keys, without the architecture, that have been read.
    """

    header: GgufHeader
    architecture: str
    tensor_names: Set[str]
    factors: Mapping[str, list[float]]
    used: set[str] = field(default_factory=set)

    def get(self, key: str) -> Any:
        """A value of the architecture's; None where the file has none."""
        self.used.add(key)
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def refuse(self, key: str, expected: str) -> InputError:
        """The error for a value."""
        name = f"{self.architecture}.{key}"
        return InputError(
            f"{self.header.file}: {name} is {self.header.metadata.get(name)!r}; expected {expected}"
        )

    @property
    def unread_notes(self) -> list[str]:
        """A line for each of the architecture's keys that nobody has read."""
        prefix = f"{self.architecture}."
        known = self.used | SILENT_KEYS
        keys = (key for key in self.header.metadata if key.startswith(prefix))
        unread = sorted(key for key in keys if key.removeprefix(prefix) not in known)
        return [
            f"{self.header.file}: {key} is not honoured: transformers' model knows no such thing"
            for key in unread
        ]
