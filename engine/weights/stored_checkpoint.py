"""What is stored of a model, before anybody names it: its configs and its stored weights.

Two containers: a Hugging Face directory (safetensors, config.json) and a GGUF file. Nothing is read but
headers and the few small tensors that say how a weight is quantised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import CONFIG_FILE, read_config, weight_files
from strata.engine.weights.formats.registry import collect_weights
from strata.engine.weights.formats.stored_weight import StoredWeight
from strata.engine.weights.gguf.model_file import QUANT_METHOD, SUFFIX, gguf_files, is_gguf, open_gguf
from strata.engine.weights.shards import read_stored_tensors
from strata.engine.weights.tensor_reader import TensorReader

LAYER_NAME = re.compile(r"(?:^|\.)layers\.([0-9]{1,6})\.")


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredCheckpoint:
    """A model as it is stored.

    Attributes:
        whole: the config of the whole model, which may be a wrapper around a decoder.
        config: the decoder's.
        quantization: what the config says of the format; empty for a plain checkpoint.
        weights: under the names that they are stored by.
    """

    whole: PreTrainedConfig
    config: PreTrainedConfig
    quantization: Mapping[str, Any]
    weights: list[StoredWeight]


def read_stored_checkpoint(path: Path) -> StoredCheckpoint:
    """Reads config and headers of a checkpoint directory, or of a GGUF file.

    Raises:
        InputError: no such directory, no config, a format strata does not read, a missing or truncated
            shard, a missing part of a quantised weight, or an index that names tensors no shard holds.
    """
    return _read_gguf(path) if is_gguf(path) else _read_folder(path)


def stored_files(path: Path) -> list[Path]:
    """The files that hold a model's weights.

    Raises:
        InputError: there are none.
    """
    return list(gguf_files(path)) if is_gguf(path) else weight_files(path)


def _read_folder(path: Path) -> StoredCheckpoint:
    file = path / CONFIG_FILE
    files = sorted(path.glob(f"*{SUFFIX}"))
    if files and not file.is_file():
        raise InputError(f"{path}: no {CONFIG_FILE}; for the GGUF file in it, expected --model {files[0]}")
    whole = read_config(path)
    config, quantization = decoder_config(whole, file)
    stored = read_stored_tensors(path)
    _check_num_layers(config, stored, file)
    with closing(TensorReader()) as reader:
        try:
            weights = collect_weights(quantization, stored, reader.read)
        except InputError as error:
            raise InputError(str(error) if str(path) in str(error) else f"{file}: {error}") from None
    return StoredCheckpoint(whole=whole, config=config, quantization=quantization, weights=weights)


def _read_gguf(path: Path) -> StoredCheckpoint:
    model = open_gguf(path)
    _check_num_layers(model.config, (weight.name for weight in model.weights), path)
    return StoredCheckpoint(
        whole=model.config,
        config=model.config,
        quantization={"quant_method": QUANT_METHOD, "notes": model.notes},
        weights=list(model.weights),
    )


def _check_num_layers(config: PreTrainedConfig, names: Iterable[str], file: Path) -> None:
    """Refuses a config of more layers than are stored, before a module is built for any."""
    found = {int(match[1]) for name in names if (match := LAYER_NAME.search(name))}
    if config.num_hidden_layers - 1 > max(found, default=-1):
        told = f"layers 0 to {max(found)}" if found else "no layers"
        raise InputError(
            f"{file}: num_hidden_layers: {config.num_hidden_layers}, but the weights hold {told}"
        )


def decoder_config(whole: PreTrainedConfig, file: Path) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The decoder's config, and its `quantization_config`, empty for a plain checkpoint.

    Raises:
        InputError: a model of several decoders, or of none; `file` is named.
    """
    try:
        config = whole.get_text_config()
    except ValueError as error:
        raise InputError(f"{file}: {str(error).splitlines()[0]}") from None
    if not all(isinstance(getattr(config, key, None), int) for key in ("num_hidden_layers", "hidden_size")):
        raise InputError(f"{file}: no num_hidden_layers and hidden_size; expected a decoder's config")
    quantization = getattr(config, "quantization_config", None) or getattr(whole, "quantization_config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config, dict(quantization or {})
