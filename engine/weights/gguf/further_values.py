"""What llama.cpp computes with and transformers' loader drops: taken from the GGUF file as well.

Rotary scaling and factors of rotary frequencies, biases, windows, widths of experts, the scale of Gemma's
queries. Source: docs/gguf.md of ggml; llama-model.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from strata.engine.types import InputError
from strata.engine.weights.gguf.settings import (
    FREQUENCY_FACTORS,
    LONG_FACTORS,
    SHORT_FACTORS,
    GgufSettings,
)

FURTHER_KEYS = {
    "attention.key_length": "head_dim",
    "attention.layer_norm_epsilon": "norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}
"""For keys that transformers' mapping of an architecture lacks; taken if its config knows the name."""

GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""The models whose queries are scaled by D / heads, not by the head dimension; llama.cpp knows them so."""


def further_values(
    settings: GgufSettings, values: Mapping[str, Any], known: PreTrainedConfig
) -> dict[str, Any]:
    """What the file says beyond transformers' mapping, under the names of its config class.

    Args:
        settings: the file's metadata.
        values: what the mapping gives.
        known: a config of the class, which tells what it takes.

    Raises:
        InputError: rotary settings that strata does not have.
    """
    further: dict[str, Any] = {}
    for key, name in FURTHER_KEYS.items():
        value = settings.header.metadata.get(f"{settings.architecture}.{key}")
        takes = hasattr(known, name) or (name == "rope_theta" and hasattr(known, "rope_parameters"))
        if name not in values and takes and value is not None:
            further[name] = settings.get(key)
    for name, tensor in (("attention_bias", "attn_q.bias"), ("mlp_bias", "ffn_up.bias")):
        if hasattr(known, name):
            further[name] = f"blk.0.{tensor}" in settings.tensor_names
    head_dim = {**values, **further}.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    if settings.get("attention.key_length") not in (None, head_dim):
        raise settings.refuse("attention.key_length", f"{head_dim}, the dimensions of a head")
    if settings.architecture in GEMMA_27B_LAYERS:
        is_27b = values["num_hidden_layers"] == GEMMA_27B_LAYERS[settings.architecture]
        by_heads = values["hidden_size"] // values["num_attention_heads"]
        further["query_pre_attn_scalar"] = by_heads if is_27b else head_dim
    further |= _partial_rotary(settings, head_dim, known)
    scaling = _rope_scaling(settings, values)
    if scaling:
        further["rope_scaling"] = scaling
        original = scaling.get("original_max_position_embeddings")
        if original is not None and hasattr(known, "original_max_position_embeddings"):
            further["original_max_position_embeddings"] = original
    return further


def _partial_rotary(settings: GgufSettings, head_dim: int, known: PreTrainedConfig) -> dict[str, float]:
    """The rotated share of a head, where it is not all of it."""
    rotated = settings.get("rope.dimension_count")
    if rotated is None:
        return {}
    parameters = getattr(known, "rope_parameters", None) or {}
    if "partial_rotary_factor" in parameters or hasattr(known, "partial_rotary_factor"):
        return {"partial_rotary_factor": rotated / head_dim}
    if rotated != head_dim:
        raise settings.refuse("rope.dimension_count", f"{head_dim}, all dimensions of a head")
    return {}


def _rope_scaling(settings: GgufSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary scaling in transformers' terms; factors of frequencies are what it calls longrope."""
    original = settings.get("rope.scaling.original_context_length")
    factor, kind = settings.get("rope.scaling.factor"), settings.get("rope.scaling.type")
    window = values["max_position_embeddings"]
    if FREQUENCY_FACTORS in settings.factors:
        factors = settings.factors[FREQUENCY_FACTORS]
        return _longrope(factors, factors, window, attention_factor=1.0)
    if LONG_FACTORS in settings.factors or SHORT_FACTORS in settings.factors:
        if not {LONG_FACTORS, SHORT_FACTORS} <= settings.factors.keys():
            raise InputError(f"{settings.header.file}: expected both {SHORT_FACTORS} and {LONG_FACTORS}")
        attention = settings.get("rope.scaling.attn_factor")
        short, long = settings.factors[SHORT_FACTORS], settings.factors[LONG_FACTORS]
        return _longrope(short, long, original or window, attention_factor=attention)
    if kind in (None, "none"):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": float(factor),
            "original_max_position_embeddings": original or int(window / factor),
        }
    raise settings.refuse("rope.scaling.type", "none, linear or yarn, or factors as tensors")


def _longrope(
    short: list[float], long: list[float], original: int, attention_factor: float | None
) -> dict[str, Any]:
    scaling = {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
    }
    return scaling if attention_factor is None else scaling | {"attention_factor": attention_factor}
