"""The config of a GGUF file: its metadata under transformers' names.

The names are transformers' own (GGUF_CONFIG_MAPPING), as is the rule for tied embeddings. What nobody honours
is told.
Independent check: AutoConfig.from_pretrained(gguf_file=...), which is slow where the vocabulary is large.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Set
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.integrations import ggml

from strata.engine.types import InputError
from strata.engine.weights.gguf.further_values import further_values
from strata.engine.weights.gguf.header import GgufHeader, StringArray
from strata.engine.weights.gguf.settings import GgufSettings

CONFIG_NAMES: Mapping[str, Any] = ggml.GGUF_CONFIG_MAPPING
CONFIG_DEFAULTS: Mapping[str, Any] = ggml.GGUF_CONFIG_DEFAULTS_MAPPING
"""Transformers' names and defaults by architecture."""

ARCHITECTURES = {
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "llama": "llama",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "starcoder2": "starcoder2",
}
"""`general.architecture` -> what transformers' mapping calls it: the decoders among those that it knows, but
for those whose layers strata does not run (nemotron, stablelm). llama.cpp calls a Mistral `llama`."""
MODEL_TYPES = {"gemma3": "gemma3_text"}

WORDS_LIKE_GPT2 = ("default", "gpt-2", "gpt2", "smollm", "starcoder")
"""Values of `tokenizer.ggml.pre` for which GPT-2's words give the same tokens: the last two part digits, too,
and have no token of a digit and anything else."""


def read_gguf_config(
    header: GgufHeader, tensor_names: Set[str], factors: Mapping[str, list[float]]
) -> tuple[PreTrainedConfig, list[str]]:
    """The config of a GGUF model.

    Args:
        header: of the file, or of the first one of a split model.
        tensor_names: all tensors of the model.
        factors: values of the FACTOR_TENSORS that it has.

    Returns:
        The config, and a line each for metadata that nobody honours.

    Raises:
        InputError: an architecture that strata does not read, or metadata that make no config.
    """
    architecture = header.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{header.file}: general.architecture is {architecture!r}; "
            f"expected one of {', '.join(ARCHITECTURES)}"
        )
    settings = GgufSettings(
        header=header, architecture=architecture, tensor_names=tensor_names, factors=factors
    )
    values = _mapped_values(settings)
    _expect_blocks(settings, values)
    try:
        known = AutoConfig.for_model(**values)
        config = AutoConfig.for_model(**values, **further_values(settings, values, known))
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{header.file}: transformers makes no config of its metadata: {reason}") from None
    return config, [*settings.unread_notes, *_tokenizer_notes(header)]


def _mapped_values(settings: GgufSettings) -> dict[str, Any]:
    """What transformers' own mapping gives."""
    metadata, name = settings.header.metadata, ARCHITECTURES[settings.architecture]
    values: dict[str, Any] = dict(CONFIG_DEFAULTS.get(name, {}))
    values["model_type"] = MODEL_TYPES.get(name, name)
    for key, renamed in CONFIG_NAMES[name].items():
        value = settings.get(key)
        if renamed is None or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise settings.refuse(key, "a number")
        values[renamed] = value
    for key, renamed in CONFIG_NAMES["tokenizer"].items():
        if renamed is not None and isinstance(metadata.get(f"tokenizer.{key}"), int):
            values[renamed] = metadata[f"tokenizer.{key}"]
    values["tie_word_embeddings"] = "output.weight" not in settings.tensor_names
    tokens = metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in values and isinstance(tokens, StringArray):
        values["vocab_size"] = tokens.num_strings
    return values


def _expect_blocks(settings: GgufSettings, values: Mapping[str, Any]) -> None:
    """Before a config of a million layers is made: the file must hold every block it speaks of."""
    blocks = {name.split(".")[1] for name in settings.tensor_names if name.startswith("blk.")}
    if values.get("num_hidden_layers") != len(blocks):
        raise settings.refuse("block_count", f"{len(blocks)}, the blocks whose tensors the file holds")
    if not values.get("num_attention_heads", 0) > 0:
        raise settings.refuse("attention.head_count", "a number above 0")
    if not values.get("hidden_size", 0) > 0:
        raise settings.refuse("embedding_length", "a number above 0")


def _tokenizer_notes(header: GgufHeader) -> list[str]:
    """A line where transformers does not know how the vocabulary's makers cut text into words."""
    words = header.metadata.get("tokenizer.ggml.pre", "default")
    if header.metadata.get("tokenizer.ggml.model") != "gpt2" or words in WORDS_LIKE_GPT2:
        return []
    if words in _words_known_to_transformers():
        return []
    return [f"{header.file}: tokenizer.ggml.pre is {words!r}: transformers cuts words as GPT-2 does instead"]


def _words_known_to_transformers() -> Container[str]:
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping
    except ImportError:
        return ()
    return gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS
