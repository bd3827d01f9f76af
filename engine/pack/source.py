"""What is packed: a Hugging Face folder, or a GGUF file, whose config and tokenizer lie in its metadata."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from strata.engine.pack.config_json import small_files
from strata.engine.prompts.tokenizer import read_tokenizer
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.checkpoint_folder import CONFIG_FILE, read_config_json
from strata.engine.weights.formats.registry import collect_weights
from strata.engine.weights.formats.stored_weight import StoredWeight
from strata.engine.weights.gguf.model_file import is_gguf
from strata.engine.weights.shards import read_stored_tensors
from strata.engine.weights.stored_checkpoint import stored_files
from strata.engine.weights.tensor_reader import TensorReader


def source_files(model: Path) -> list[Path]:
    """The files that decide what is packed: weights and config.

    Raises:
        InputError: no weights there.
    """
    return stored_files(model) if is_gguf(model) else [*stored_files(model), model / CONFIG_FILE]


def source_weights(checkpoint: Checkpoint) -> list[StoredWeight]:
    """Every stored weight under a name that checkpoints have, in stored order.

    Raises:
        InputError: a part of one is missing.
    """
    if is_gguf(checkpoint.path):
        return [weight for source in checkpoint.weights.values() for weight, _ in source.parts]
    stored = read_stored_tensors(checkpoint.path)
    with closing(TensorReader()) as reader:
        return collect_weights(checkpoint.quantization, stored, reader.read)


def source_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Content of config.json: as it is written, or as transformers writes the one of a GGUF file."""
    if not is_gguf(checkpoint.path):
        return read_config_json(checkpoint.path)
    content = json.loads(checkpoint.config.to_json_string(use_diff=False))
    dtype = str(checkpoint.stored_dtype).removeprefix("torch.")
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[checkpoint.config.model_type]
    return content | {"architectures": [architecture], "dtype": dtype}


def files_to_copy(model: Path) -> tuple[Path, ...]:
    """What a packed checkpoint takes over as it is."""
    return () if is_gguf(model) else small_files(model)


def write_tokenizer(model: Path, folder: Path) -> None:
    """Writes a GGUF file's tokenizer as Hugging Face's files; a folder's own are copied instead.

    Raises:
        InputError: it has none that transformers can make.
    """
    if is_gguf(model):
        read_tokenizer(model).save_pretrained(folder)
