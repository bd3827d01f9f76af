"""Writes a Llama checkpoint as a GGUF file that llama.cpp loads; knows no way of running it.

The vocabulary is left out: the file says how many tokens there are, and callers feed token ids. llama.cpp
rotates neighbouring pairs of a head's dimensions where transformers rotates its halves, so the rows of the
query and key projections are put in the other order.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; LlamaModel of llama.cpp's converter.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter

# The type of the layers' matrices and of the token embedding -> that of the vocabulary projection, which
# llama.cpp's quantizer also keeps at more than four bits.
OUTPUT_TYPE = {"bf16": "bf16", "q8_0": "q8_0", "q4_0": "q8_0"}
MODULE_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PLAIN_LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}


def write_gguf(checkpoint: Path, path: Path, matrix_type: str) -> None:
    """Converts a checkpoint of safetensors. Peak memory: one tensor, in float32 when it is quantized.

    Args:
        checkpoint: Hugging Face folder of a plain Llama: untied, no biases, no rotary scaling.
        path: The file to write.
        matrix_type: bf16, q8_0 or q4_0; norms stay float32.

    Raises:
        ValueError: Not such a model, no weights, an unknown type, or rows that its blocks do not divide.
    """
    from gguf import GGUFWriter
    from safetensors import safe_open

    if matrix_type not in OUTPUT_TYPE:
        raise ValueError(f"matrix_type {matrix_type!r}: expected one of {', '.join(OUTPUT_TYPE)}")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    _check_plain_llama(checkpoint, config)
    # All that lie there: the bench made the folder, and a peer's interpreter has nothing of the engine.
    weight_files = sorted(checkpoint.glob("*.safetensors"))
    if not weight_files:
        raise ValueError(f"{checkpoint}: no file *.safetensors")
    writer = GGUFWriter(path, "llama")
    _add_metadata(writer, config, matrix_type)
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(file, framework="pt")) for file in weight_files]
        sources = {name: file for file in files for name in sorted(file.keys())}
        for name, file in sources.items():
            _announce_tensor(writer, name, file.get_slice(name).get_shape(), matrix_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, file in sources.items():
            writer.write_tensor_data(_convert_tensor(file.get_tensor(name), name, config, matrix_type))
    writer.close()


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`.

    Raises:
        ValueError: A tensor that a plain Llama does not have.
    """
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.weight", name)
    if match is None or match[2] not in MODULE_NAMES:
        raise ValueError(f"tensor {name}: expected those of a plain Llama")
    block = "" if match[1] is None else f"blk.{match[1]}."
    return f"{block}{MODULE_NAMES[match[2]]}.weight"


def interleave_halves(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorders a projection's rows [num_heads * H, D]: a head's rows i and H/2 + i become neighbours."""
    heads = rows.reshape(num_heads, 2, -1, rows.shape[1])
    return heads.transpose(1, 2).reshape(rows.shape)


def _check_plain_llama(checkpoint: Path, config: dict[str, Any]) -> None:
    for key, wanted in PLAIN_LLAMA.items():
        if config[key] != wanted:
            raise ValueError(f"{checkpoint / 'config.json'}: {key} is {config[key]!r}, expected {wanted!r}")
    rope_type = _rope(config).get("rope_type", "default")
    if rope_type != "default":
        raise ValueError(f"{checkpoint / 'config.json'}: rope_type {rope_type!r}, expected 'default'")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("rope_parameters") or {"rope_theta": config["rope_theta"]}


def _add_metadata(writer: GGUFWriter, config: dict[str, Any], matrix_type: str) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    writer.add_file_type(LlamaFileType[f"MOSTLY_{matrix_type.upper()}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _announce_tensor(writer: GGUFWriter, name: str, shape: list[int], matrix_type: str) -> None:
    from gguf.quants import quant_shape_to_byte_shape

    kind = _tensor_type(name, matrix_type)
    try:
        byte_shape = quant_shape_to_byte_shape(shape, kind)
    except ValueError as error:
        raise ValueError(f"tensor {name} of shape {list(shape)}: {error}") from error
    num_bytes = int(np.prod(byte_shape))
    writer.add_tensor_info(gguf_name(name), byte_shape, np.dtype(np.uint8), num_bytes, raw_dtype=kind)


def _convert_tensor(
    tensor: torch.Tensor, name: str, config: dict[str, Any], matrix_type: str
) -> np.ndarray[Any, Any]:
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = "num_attention_heads" if name.endswith("q_proj.weight") else "num_key_value_heads"
        tensor = interleave_halves(tensor, config[heads])
    kind = _tensor_type(name, matrix_type)
    if kind == GGMLQuantizationType.BF16:
        return tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    return quantize(tensor.float().numpy(), kind).view(np.uint8)


def _tensor_type(name: str, matrix_type: str) -> GGMLQuantizationType:
    from gguf import GGMLQuantizationType

    if name.endswith("norm.weight"):
        return GGMLQuantizationType.F32
    return GGMLQuantizationType[
        (OUTPUT_TYPE[matrix_type] if name == "lm_head.weight" else matrix_type).upper()
    ]
