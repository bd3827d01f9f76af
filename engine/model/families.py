"""What a model family asks for that strata does not have, told by its config before any work."""

from __future__ import annotations

from transformers import PreTrainedConfig

from strata.engine.types import InputError


def refuse_unsupported(config: PreTrainedConfig) -> None:
    """Raises InputError when the config asks for something that would be silently wrong."""
    for name, allowed in UNSUPPORTED_SETTINGS.items():
        setting = getattr(config, name, None)
        if setting not in allowed:
            raise InputError(f"model type {config.model_type!r}: {name}={setting} is not supported")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise InputError(f"model type {config.model_type!r}: layers of type {min(kinds)} are not supported")


def rope_type(config: PreTrainedConfig) -> str:
    """The config's kind of rotary scaling; where layers differ, one that depends on length if any."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [kind for kind in parameters.values() if isinstance(kind, dict)] or [parameters]
    kinds = [kind.get("rope_type", "default") for kind in by_layer_type]
    return next((kind for kind in kinds if kind in LENGTH_DEPENDENT_ROPE), kinds[0])


UNSUPPORTED_SETTINGS = {
    "use_bidirectional_attention": (None, False),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "attention_chunk_size": (None,),
    "alibi": (None, False),
    "embedding_multiplier": (None, 1, 1.0),
}


LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
