"""The keys of a config.json that are relied on, checked before transformers sees the file.

Sizes have bounds, so that nothing is built or allocated that no model needs; keys that are not named here are
left to transformers. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from strata.engine.json_files import Schema, check_schema, read_json_object, shown
from strata.engine.types import InputError

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 16 << 20
MAX_LAYERS = 1_000
TEXT_CONFIGS = ("text_config", "decoder", "generator", "text_encoder", "llm_config", "language_config")
"""Where configs of several models keep those of texts."""


def _expect_one_of(known: frozenset[str], value: str) -> str:
    if value not in known:
        raise ValueError(f"expected one of {', '.join(sorted(known))}")
    return value


def _rope_type(value: str) -> str:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return _expect_one_of(frozenset(ROPE_INIT_FUNCTIONS) | OTHER_ROPE_TYPES, value)


def _activation(value: str) -> str:
    from transformers.activations import ACT2FN

    if value not in ACT2FN:
        raise ValueError("expected an activation that transformers knows, such as silu or gelu")
    return value


def _dtype(value: str) -> str:
    import torch

    if not isinstance(getattr(torch, value, None), torch.dtype):
        raise ValueError("expected a dtype of torch, such as bfloat16")
    return value


def _no_other_file(value: str) -> str:
    raise ValueError("expected none: weights are read from model.safetensors, or the shards of its index")


OTHER_ROPE_TYPES = frozenset({"default", "mrope", "xdrope", "axial", "su"})
"""Kinds of rotary tables that transformers does not look up, or renames."""

Layers = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
Size = Annotated[int, Field(ge=1, le=10_000_000)]
SizeOrNone = Annotated[int, Field(ge=0, le=10_000_000)] | None
PerLayer = Size | list[SizeOrNone] | None
"""One size, or one a layer, as OpenELM has it."""
Tokens = Annotated[int, Field(ge=1, le=100_000_000)] | None
Experts = Annotated[int, Field(ge=0, le=16_384)] | list[SizeOrNone] | None
Epsilon = Annotated[float, Field(ge=0, le=1)] | None
Positive = Annotated[float, Field(gt=0)]
Activation = Annotated[str, AfterValidator(_activation)] | None
DType = Annotated[str, AfterValidator(_dtype)] | dict[str, str] | None
Object = dict[str, Any] | None
Names = list[str] | None


class Rope(Schema):
    """A kind of rotary table, by the keys that all kinds share."""

    rope_type: Annotated[str, AfterValidator(_rope_type)] | None = None
    type: Annotated[str, AfterValidator(_rope_type)] | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    original_max_position_embeddings: Tokens = None
    short_factor: list[Positive] | None = None
    long_factor: list[Positive] | None = None


class QuantizedValues(Schema):
    """What compressed-tensors says of a group's weights or activations."""

    num_bits: int | None = None
    type: str | None = None
    strategy: str | None = None
    group_size: int | None = None
    block_structure: list[int] | str | None = None


class QuantizedGroup(Schema):
    """Modules that compressed-tensors stores alike."""

    weights: QuantizedValues | None = None
    input_activations: QuantizedValues | None = None
    output_activations: QuantizedValues | None = None
    targets: Names = None
    format: str | None = None


class Quantization(Schema):
    """`quantization_config`, whatever the format: what the readers of formats ask for."""

    quant_method: str | None = None
    format: str | None = None
    checkpoint_format: str | None = None
    version: str | int | None = None
    bits: Annotated[int, Field(ge=1, le=16)] | None = None
    group_size: Annotated[int, Field(ge=-1, le=10_000_000)] | None = None
    zero_point: bool | None = None
    load_in_4bit: bool | None = None
    load_in_8bit: bool | None = None
    weight_block_size: list[Size] | None = None
    config_groups: dict[str, QuantizedGroup] | None = None
    sparsity_config: Object = None
    transform_config: Object = None
    kv_cache_scheme: Object = None
    dynamic: Object | bool = None
    ignore: Names = None
    modules_to_not_convert: Names = None
    llm_int8_skip_modules: Names = None


class ModelConfig(Schema):
    """config.json, of a decoder or of an encoder; older models' names of the same sizes included."""

    model_type: str | None = None
    architectures: Names = None
    auto_map: dict[str, Any] | None = None
    text_config: Object = None
    transformers_weights: Annotated[str, AfterValidator(_no_other_file)] | None = None
    num_hidden_layers: Layers = 1
    num_layers: Layers | None = None
    n_layers: Layers | None = None
    n_layer: Layers | None = None
    encoder_layers: SizeOrNone = None
    decoder_layers: SizeOrNone = None
    num_attention_heads: PerLayer = None
    n_heads: Size | None = None
    n_head: Size | None = None
    num_key_value_heads: PerLayer = None
    hidden_size: Size | list[Size] | None = None
    dim: Size | list[Size] | None = None
    d_model: Size | None = None
    n_embd: Size | None = None
    embedding_size: Size | None = None
    intermediate_size: PerLayer = None
    moe_intermediate_size: PerLayer = None
    hidden_dim: PerLayer = None
    head_dim: Size | None = None
    vocab_size: Tokens = None
    type_vocab_size: SizeOrNone = None
    max_position_embeddings: Tokens = None
    n_positions: Tokens = None
    sliding_window: Annotated[int, Field(ge=0)] | list[int | None] | None = None
    num_experts: Experts = None
    num_local_experts: Experts = None
    n_routed_experts: Experts = None
    n_shared_experts: Experts = None
    num_experts_per_tok: Experts = None
    num_labels: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    rms_norm_eps: Epsilon = None
    layer_norm_eps: Epsilon = None
    layer_norm_epsilon: Epsilon = None
    norm_eps: Epsilon = None
    norm_epsilon: Epsilon = None
    rope_theta: Positive | list[Positive] | dict[str, Positive | None] | None = None
    rotary_emb_base: Positive | None = None
    rope_parameters: Object = None
    rope_scaling: Object = None
    hidden_act: Activation = None
    hidden_activation: Activation = None
    layer_types: Annotated[list[str], Field(max_length=MAX_LAYERS)] | None = None
    tie_word_embeddings: bool | None = None
    dtype: DType = None
    torch_dtype: DType = None
    quantization_config: Quantization | None = None


def read_config_json(folder: Path) -> dict[str, Any]:
    """The config as it is written, without what transformers adds to it.

    Raises:
        InputError: there is none, it is no JSON object, or a key that is relied on has a value that cannot
            be: the file and the key.
    """
    file = folder / CONFIG_FILE
    content = read_json_object(file, max_bytes=MAX_CONFIG_BYTES)
    check_config(content, str(file))
    return content


def check_config(content: Mapping[str, Any], where: str) -> None:
    """Checks a config and those of texts inside it; `where` names the file.

    Raises:
        InputError: as `read_config_json`.
    """
    config = check_schema(ModelConfig, content, where)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise InputError(
            f"{where}: num_key_value_heads: expected a divisor of num_attention_heads {heads}, "
            f"found {kv_heads}"
        )
    for key, rope in _ropes(content):
        check_schema(Rope, rope, f"{where}: {key}")
    for key in TEXT_CONFIGS:
        if isinstance(nested := content.get(key), dict):
            check_config(nested, f"{where}: {key}")


def _ropes(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rotary settings with their keys: one for all layers, or one a kind of layers inside it."""
    for key in ("rope_parameters", "rope_scaling"):
        settings = content.get(key) or {}
        yield key, settings
        for name, nested in settings.items():
            if isinstance(nested, dict):
                yield f"{key}.{name}", nested


def refuse_model_code(content: Mapping[str, Any], where: str) -> None:
    """Refuses a model that only code of its own folder can build: such code is never run.

    A model type that transformers knows is built by transformers, whatever the folder brings.

    Raises:
        InputError: the model type is not known, and `auto_map` names code.
    """
    from transformers import CONFIG_MAPPING

    model_type, code = content.get("model_type"), content.get("auto_map")
    if code and model_type not in CONFIG_MAPPING:
        raise InputError(
            f"{where}: auto_map: model type {model_type!r} comes with code of its own "
            f"({shown(next(iter(code.values())))}), which is never run; expected a model type that the "
            "installed transformers knows"
        )
