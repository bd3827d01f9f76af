"""A Hugging Face checkpoint directory as downloaded: its config, and which stored weights make which weight.

Nothing is read but headers and the few small tensors that say how a weight is quantised. Names inside are
those of transformers' base model ("layers.3.mlp.up_proj.weight", "embed_tokens.weight", "norm.weight") and of
the heads ("lm_head.weight", "score.weight"), whatever prefix the file uses; transformers' own conversion
tables merge the experts of older mixture-of-experts checkpoints.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.core_model_loading import WeightConverter, dot_natural_key

from strata.engine.types import InputError
from strata.engine.weights.formats.stored_weight import PlainWeight, StoredWeight
from strata.engine.weights.stored_checkpoint import read_stored_checkpoint
from strata.engine.weights.stored_rows import StoredRows, rows_of
from strata.engine.weights.transformers_names import HEAD_WEIGHTS, ModelNames, Placed, read_model_names

EMBEDDING, PROJECTION = "embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSource:
    """The stored weights that make one weight: one as it is, or several through a transformers converter."""

    name: str
    parts: tuple[tuple[StoredWeight, str], ...]
    converter: WeightConverter | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(weight.num_bytes for weight, _ in self.parts)

    @property
    def single(self) -> StoredWeight | None:
        """The stored weight that is this weight without further ado; None when a converter makes it."""
        return self.parts[0][0] if self.converter is None else None

    def combine(self, tensors: list[torch.Tensor], config: PreTrainedConfig) -> torch.Tensor:
        """The weight, from the parts' decoded tensors in order; the tensor itself without a converter."""
        if self.converter is None:
            return tensors[0]
        converter = copy.deepcopy(self.converter)
        for (stored, pattern), tensor in zip(self.parts, tensors, strict=True):
            converter.add_tensor(self.name, stored.name, pattern, tensor)  # type: ignore[arg-type]
        converted = converter.convert(self.name, config=config)
        # transformers 5.0 returns the errors beside the weights, and none without a place to put them.
        weights = converted[0] if isinstance(converted, tuple) else converted
        return next(iter(weights.values()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Config and weight sources of one directory.

    Attributes:
        path: the directory.
        config: the decoder's.
        weights: by name.
        quantization: what the config says of the format; empty for a plain checkpoint.
        is_tied: without a stored vocabulary projection, the input embedding is it.
        unused: stored names of weights that no part of transformers' model has a place for.
    """

    path: Path
    config: PreTrainedConfig
    weights: dict[str, WeightSource]
    quantization: Mapping[str, Any] = field(default_factory=dict)
    is_tied: bool = False
    unused: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return self.config.num_hidden_layers

    @property
    def stored_dtype(self) -> torch.dtype:
        """Dtype of the first decoder layer's largest weight; for a quantised one, what the config says."""
        weights = [weight for source in self.layer_sources(0).values() for weight, _ in source.parts]
        largest = max(weights, key=lambda weight: weight.num_bytes)
        if isinstance(largest, PlainWeight):
            return largest.dtype
        return getattr(self.config, "dtype", None) or torch.bfloat16

    @property
    def format_name(self) -> str:
        """Storage format of the first decoder layer's largest weight ("plain", "nf4", ...)."""
        weights = [weight for source in self.layer_sources(0).values() for weight, _ in source.parts]
        return max(weights, key=lambda weight: weight.num_bytes).format_name

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights on disk."""
        return sum(source.num_bytes for source in self.weights.values())

    @property
    def output_embedding(self) -> str | None:
        """Name of the vocabulary projection [V, D]: a stored one, else the tied embedding; None without."""
        if PROJECTION in self.weights:
            return PROJECTION
        return EMBEDDING if self.is_tied else None

    def layer_sources(self, layer: int) -> dict[str, WeightSource]:
        """Weights of a decoder layer by their name inside the layer."""
        prefix = f"layers.{layer}."
        return {
            name.removeprefix(prefix): source
            for name, source in self.weights.items()
            if name.startswith(prefix)
        }

    def require(self, name: str) -> WeightSource:
        """The sources of a weight.

        Raises:
            InputError: the checkpoint lacks it.
        """
        if name not in self.weights:
            raise InputError(f"{self.path}: the checkpoint holds no tensor for {name}")
        return self.weights[name]

    def require_rows(self, name: str) -> StoredRows:
        """A weight that is read by rows, outside of layers: embedding, final norm, heads.

        Raises:
            InputError: the checkpoint lacks it, or stores it quantised over several rows.
        """
        return rows_of(self.require(name).parts[0][0])


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads config and headers of a checkpoint directory, or of a GGUF file.

    Raises:
        InputError: no such directory, no config, a format strata does not read, a missing or truncated
            shard, a missing part of a quantised weight, or an index that names tensors no shard holds.
    """
    stored = read_stored_checkpoint(path)
    names = read_model_names(stored.whole)
    weights = _name_weights(stored.weights, names)
    if EMBEDDING not in weights:
        raise InputError(
            f"{path}: no tensor embed_tokens.weight; expected a decoder with layers, embed_tokens, norm"
        )
    checkpoint = Checkpoint(
        path=path,
        config=stored.config,
        weights=weights,
        quantization=stored.quantization,
        is_tied=names.is_tied,
        unused=_unused(stored.weights, names),
    )
    _check_beside_layers(checkpoint)
    return checkpoint


def _check_beside_layers(checkpoint: Checkpoint) -> None:
    """Refuses embedding, final norm and projection of another shape than the config's, or not of floats."""
    config = checkpoint.config
    matrix, vector = (config.vocab_size, config.hidden_size), (config.hidden_size,)
    expected = {"embed_tokens.weight": matrix, "lm_head.weight": matrix, "norm.weight": vector}
    for name in (*expected, *HEAD_WEIGHTS):
        if name not in checkpoint.weights:
            continue
        stored = checkpoint.require_rows(name)
        if name == "score.bias" and "score.weight" in checkpoint.weights:
            expected = expected | {name: checkpoint.require_rows("score.weight").shape[:1]}
        stored.dtype  # noqa: B018  (raises for a dtype that cannot be computed with)
        if name in expected and stored.shape != expected[name]:
            raise InputError(
                f"{checkpoint.path}: {name} has shape {list(stored.shape)}; "
                f"the config expects {list(expected[name])}"
            )


def _name_weights(stored: Iterable[StoredWeight], names: ModelNames) -> dict[str, WeightSource]:
    """The decoder's and the heads' weights, the vocabulary projection and the embedding tied if they are."""
    found: dict[str, list[tuple[StoredWeight, Placed]]] = defaultdict(list)
    for weight in sorted(stored, key=lambda weight: dot_natural_key(weight.name)):
        placed = names.place(weight.name)
        if placed.name is not None and (placed.is_known or placed.name in HEAD_WEIGHTS):
            found[placed.name].append((weight, placed))
    weights = {
        name: WeightSource(
            name=name,
            parts=tuple((weight, placed.pattern) for weight, placed in parts),
            converter=parts[0][1].converter,
        )
        for name, parts in found.items()
    }
    if names.is_tied and EMBEDDING not in weights and PROJECTION in weights:
        weights[EMBEDDING] = replace(weights.pop(PROJECTION), name=EMBEDDING)
    return weights


def _unused(stored: Iterable[StoredWeight], names: ModelNames) -> tuple[str, ...]:
    """Names of stored weights that transformers' model has no parameter for, and would tell of."""
    placed = ((weight.name, names.place(weight.name)) for weight in stored)
    return tuple(
        name
        for name, place in placed
        if not place.is_known and place.name not in HEAD_WEIGHTS and not names.is_ignored(place)
    )
