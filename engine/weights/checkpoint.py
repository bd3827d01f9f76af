"""A Hugging Face checkpoint directory as downloaded: its config, and which stored weights make which weight.

Nothing is read but headers and the few small tensors that say how a weight is quantised. Names inside are
those of transformers' base model ("layers.3.mlp.up_proj.weight", "embed_tokens.weight", "norm.weight") and of
the heads ("lm_head.weight", "score.weight"), whatever prefix the file uses; transformers' own conversion
tables merge the experts of older mixture-of-experts checkpoints.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import (
    CONFIG_FILE,
    INDEX_FILE,
    read_config,
    read_weight_map,
    weight_files,
)
from strata.engine.weights.formats.registry import collect_weights
from strata.engine.weights.formats.stored_weight import PlainWeight, StoredWeight
from strata.engine.weights.gguf.model_file import QUANT_METHOD, SUFFIX, is_gguf, open_gguf
from strata.engine.weights.safetensors_file import StoredTensor, read_header
from strata.engine.weights.stored_rows import StoredRows, rows_of
from strata.engine.weights.tensor_reader import TensorReader

LAYER_NAME = re.compile(r"^layers\.(\d+)\.(.+)$")
HEAD_WEIGHTS = ("lm_head.weight", "lm_head.bias", "score.weight")


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
        return next(iter(converter.convert(self.name, config=config).values()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Config and weight sources of one directory; `quantization` is what the config says of the format."""

    path: Path
    config: PreTrainedConfig
    weights: dict[str, WeightSource]
    quantization: Mapping[str, Any] = field(default_factory=dict)

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
        """Name of the vocabulary projection [V, D]: the input embedding when tied; None without one."""
        if "lm_head.weight" in self.weights:
            return "lm_head.weight"
        return "embed_tokens.weight" if self.config.tie_word_embeddings else None

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
    config, quantization, collected = _open_gguf(path) if is_gguf(path) else _open_folder(path)
    weights = _name_weights(collected, config.model_type)
    if "embed_tokens.weight" not in weights:
        raise InputError(
            f"{path}: no tensor embed_tokens.weight; expected a decoder with layers, embed_tokens, norm"
        )
    checkpoint = Checkpoint(path=path, config=config, weights=weights, quantization=quantization)
    _check_beside_layers(checkpoint)
    return checkpoint


def _open_folder(path: Path) -> tuple[PreTrainedConfig, dict[str, Any], list[StoredWeight]]:
    """Config, `quantization_config` and weights of a Hugging Face directory."""
    files = sorted(path.glob(f"*{SUFFIX}"))
    if files and not (path / CONFIG_FILE).is_file():
        raise InputError(f"{path}: no {CONFIG_FILE}; for the GGUF file in it, expected --model {files[0]}")
    config, quantization = _read_decoder_config(path)
    stored = _stored_tensors(path)
    with closing(TensorReader()) as reader:
        try:
            collected = collect_weights(quantization, stored, reader.read)
        except InputError as error:
            named = str(path) in str(error)
            raise InputError(str(error) if named else f"{path / CONFIG_FILE}: {error}") from None
    return config, quantization, collected


def _open_gguf(path: Path) -> tuple[PreTrainedConfig, dict[str, Any], list[StoredWeight]]:
    """The same of a GGUF model."""
    model = open_gguf(path)
    quantization = {"quant_method": QUANT_METHOD, "notes": model.notes}
    return model.config, quantization, list(model.weights)


def _check_beside_layers(checkpoint: Checkpoint) -> None:
    """Refuses embedding, final norm and projection of another shape than the config's, or not of floats."""
    config = checkpoint.config
    matrix, vector = (config.vocab_size, config.hidden_size), (config.hidden_size,)
    expected = {"embed_tokens.weight": matrix, "lm_head.weight": matrix, "norm.weight": vector}
    for name in (*expected, *HEAD_WEIGHTS):
        if name not in checkpoint.weights:
            continue
        stored = checkpoint.require_rows(name)
        stored.dtype  # noqa: B018  (raises for a dtype that cannot be computed with)
        if name in expected and stored.shape != expected[name]:
            raise InputError(
                f"{checkpoint.path}: {name} has shape {list(stored.shape)}; "
                f"the config expects {list(expected[name])}"
            )


def _read_decoder_config(path: Path) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The decoder's config, and its `quantization_config`, empty for a plain checkpoint."""
    whole = read_config(path)
    config = whole.get_text_config()
    if not all(isinstance(getattr(config, key, None), int) for key in ("num_hidden_layers", "hidden_size")):
        raise InputError(
            f"{path / CONFIG_FILE}: no num_hidden_layers and hidden_size; expected a decoder's config"
        )
    quantization = getattr(config, "quantization_config", None) or getattr(whole, "quantization_config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config, dict(quantization or {})


def _stored_tensors(path: Path) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(path):
        stored |= read_header(file)
    index = path / INDEX_FILE
    if index.is_file():
        weight_map = read_weight_map(path)
        absent = sorted(set(weight_map) - set(stored))
        if absent:
            raise InputError(
                f"{index}: names tensor {absent[0]}, which {weight_map[absent[0]]} does not hold"
            )
    return stored


def _name_weights(stored: Iterable[StoredWeight], model_type: str) -> dict[str, WeightSource]:
    mapping: list[Any] = get_checkpoint_conversion_mapping(model_type) or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamed = [
        (weight, *rename_source_key(weight.name, renamings, converters))
        for weight in sorted(stored, key=lambda weight: dot_natural_key(weight.name))
    ]
    prefix = _base_prefix(name for _, name, _ in renamed)
    parts: dict[str, list[tuple[StoredWeight, str]]] = defaultdict(list)
    for weight, name, pattern in renamed:
        if name.startswith(prefix) or name in HEAD_WEIGHTS:
            parts[name.removeprefix(prefix) if name not in HEAD_WEIGHTS else name].append(
                (weight, pattern or "")
            )
    return {
        name: WeightSource(name=name, parts=tuple(found), converter=_converter_of(found[0][1], converters))
        for name, found in parts.items()
    }


def _base_prefix(names: Iterable[str]) -> str:
    for name in names:
        if name.endswith("embed_tokens.weight"):
            return name.removesuffix("embed_tokens.weight")
    return ""


def _converter_of(pattern: str, converters: list[WeightConverter]) -> WeightConverter | None:
    return next(
        (converter for converter in converters if pattern and pattern in converter.source_patterns), None
    )
