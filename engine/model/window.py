"""How many tokens a model was made for, its rotary scaling taken into account. Knows no prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

# Kinds whose factor widens the window. Configs of the others (longrope, llama3) state the wide one.
WIDENING_ROPE = ("linear", "dynamic", "yarn")


@dataclass(frozen=True, kw_only=True)
class Window:
    """`num_tokens` of the longest prompt, None where nothing limits it; `note` says how it was widened."""

    num_tokens: int | None
    note: str = ""


def model_window(config: PreTrainedConfig) -> Window:
    """The window that a config describes.

    With linear, dynamic and yarn scaling it is the factor times the window before scaling:
    `original_max_position_embeddings` where the scaling names it, else `max_position_embeddings`; never less
    than the latter. Where layer types scale differently (Gemma 3), the config states the scaled window.

    Source: transformers.modeling_rope_utils.RopeParameters ("a factor of x will enable the model to handle
    sequences of length x * original maximum pre-trained length").
    """
    stated = getattr(config, "max_position_embeddings", None)
    scaling: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kind, factor = scaling.get("rope_type"), scaling.get("factor")
    if not isinstance(stated, int) or kind not in WIDENING_ROPE or not isinstance(factor, (int, float)):
        return Window(num_tokens=stated)
    original = scaling.get("original_max_position_embeddings") or stated
    widened = int(factor * original)
    if widened <= stated:
        return Window(num_tokens=stated)
    return Window(
        num_tokens=widened,
        note=f"window: {widened} tokens, by the rotary scaling of config.json ({kind}, factor {factor:g} of "
        f"{original}), not the unscaled {stated}; --max-tokens sets a smaller one",
    )
