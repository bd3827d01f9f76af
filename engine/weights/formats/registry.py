"""Which format a checkpoint's config names, and the weights that its stored tensors make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from strata.engine.types import InputError
from strata.engine.weights.formats import (
    awq,
    bitsandbytes_4bit,
    bitsandbytes_8bit,
    compressed_tensors,
    fp8,
    gptq,
)
from strata.engine.weights.formats.stored_weight import ReadSmall, StoredWeight, plain_weight
from strata.engine.weights.safetensors_file import StoredTensor

Collect = Callable[[Mapping[str, Any], Mapping[str, StoredTensor], ReadSmall], list[StoredWeight]]
"""(the config's quantization_config, stored tensors by name, reader) -> the encoded weights among them."""


def collect_bitsandbytes(
    settings: Mapping[str, Any], stored: Mapping[str, StoredTensor], read: ReadSmall
) -> list[StoredWeight]:
    """Four-bit or eight-bit weights of bitsandbytes, whichever the settings name.

    Raises:
        InputError: they name neither.
    """
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
        return bitsandbytes_4bit.collect(settings, stored, read)
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return bitsandbytes_8bit.collect(settings, stored, read)
    raise InputError("quantization_config: bitsandbytes expects load_in_4bit or load_in_8bit to be true")


FORMATS: dict[str, Collect] = {
    "awq": awq.collect,
    "bitsandbytes": collect_bitsandbytes,
    "compressed-tensors": compressed_tensors.collect,
    "compressed_tensors": compressed_tensors.collect,
    "fbgemm_fp8": fp8.collect,
    "fp8": fp8.collect,
    "gptq": gptq.collect,
}
"""By `quant_method`, as transformers names it."""


def collect_weights(
    settings: Mapping[str, Any] | None, stored: Mapping[str, StoredTensor], read: ReadSmall
) -> list[StoredWeight]:
    """Every weight of a checkpoint; tensors that no format claims, or reads to know how to decode, are plain.

    Args:
        settings: `quantization_config` of config.json; None for a plain checkpoint.
        stored: all tensors by name.
        read: reads small tensors.

    Raises:
        InputError: a format or a variant that strata does not read, or a part that is missing.
    """
    encoded: list[StoredWeight] = []
    claimed: set[str] = set()

    def read_and_claim(tensor: StoredTensor) -> torch.Tensor:
        claimed.add(tensor.name)
        return read(tensor)

    if settings:
        method = quant_method(settings)
        if method not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise InputError(f"quantization_config: quant_method {method!r}; expected one of {known}")
        encoded = FORMATS[method](settings, stored, read_and_claim)
    claimed |= {part.name for weight in encoded for part in weight.parts.values()}
    return [*encoded, *(plain_weight(tensor) for name, tensor in stored.items() if name not in claimed)]


def quant_method(settings: Mapping[str, Any]) -> str:
    """The format's name; early configs of bitsandbytes give none, but say load_in_4bit or load_in_8bit."""
    named = settings.get("quant_method")
    if named is None and ("load_in_4bit" in settings or "load_in_8bit" in settings):
        return "bitsandbytes"
    return str(named or "").lower()


def ignored_settings(settings: Mapping[str, Any]) -> list[str]:
    """What a format's settings ask for beyond its weights and strata does not do: a line each, for warnings.

    Activations, keys and values are computed in the compute dtype, which is closer to the unquantised model.
    """
    if "notes" in settings:
        return list(settings["notes"])
    groups = (settings.get("config_groups") or {}).values()
    asked = {
        "input_activations": any(group.get("input_activations") for group in groups),
        "kv_cache_scheme": settings.get("kv_cache_scheme"),
        "activation_scheme": settings.get("activation_scheme"),
        "load_in_8bit": settings.get("load_in_8bit"),
    }
    return [
        f"quantization_config: {name} also quantises activations; here only the weights are quantised"
        for name, value in asked.items()
        if value
    ]
