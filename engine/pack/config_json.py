"""What lies beside the weights of a packed checkpoint: config.json and the files taken over from the source.

Independent check: transformers, bitsandbytes and compressed-tensors load what is written
(tests/engine/pack/test_transformers_loads.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from strata.engine.pack.config import PackConfig
from strata.engine.weights.checksums import CHECKSUMS_FILE
from strata.engine.weights.first_layers import cut_settings

PLAIN_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DTYPE_KEYS = {"dtype", "torch_dtype"}
"""How transformers 5, and 4, call the dtype in config.json."""
NOT_COPIED = re.compile(
    r"^\.|\.(safetensors|bin|pt|pth|ckpt|gguf|onnx|h5|msgpack)$|\.index\.json$"
    rf"|^(config|quantize_config|quant_config)\.json$|^{re.escape(CHECKSUMS_FILE)}$"
)
"""Weights, and what would speak of the source's own format."""


def quantization_settings(
    config: PackConfig, dtype: torch.dtype, ignored: Sequence[str]
) -> dict[str, Any] | None:
    """`quantization_config` as bitsandbytes' and compressed-tensors' loaders read it; None for plain formats.

    Args:
        config: names the format.
        dtype: of the source; what bitsandbytes will compute in.
        ignored: ends of the names of linear modules that stay plain.
    """
    if config.format == "nf4":
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": config.double_quant,
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": list(ignored),
        }
    if config.format == "int8":
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
        group = {"targets": ["Linear"], "format": "int-quantized", "weights": weights}
        return {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group | {"input_activations": None, "output_activations": None}},
            "ignore": [f"re:(.*\\.)?{re.escape(name)}$" for name in ignored],
        }
    return None


def make_config(
    source: dict[str, Any],
    settings: dict[str, Any] | None,
    dtype: torch.dtype | None,
    *,
    num_layers: int,
) -> dict[str, Any]:
    """The source's config.json with another format, dtype or number of layers where these change."""
    config = copy.deepcopy(source)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("num_hidden_layers", num_layers) != num_layers:
            part.update(cut_settings(part, num_layers))
    for part in (config, *(nested for nested in config.values() if isinstance(nested, dict))):
        part.pop("quantization_config", None)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        nested = [part for part in config.values() if isinstance(part, dict) and DTYPE_KEYS & part.keys()]
        for part in (config, *nested):
            part.update(dict.fromkeys(sorted(DTYPE_KEYS & part.keys()) or ["dtype"], name))
    return config if settings is None else config | {"quantization_config": settings}


def small_files(model: Path) -> tuple[Path, ...]:
    """Tokenizer, generation config and the like: what a packed checkpoint takes over as it is."""
    return tuple(
        file for file in sorted(model.iterdir()) if file.is_file() and not NOT_COPIED.search(file.name)
    )
