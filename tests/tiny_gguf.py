"""Owns the tiny GGUF files of the tests: a random model of transformers', written as llama.cpp would.

Names come from the gguf package; q and k rows of Llama are put in the order that llama.cpp rotates, Gemma's
norms gain 1, a mixture's experts are stacked. Knows nothing of the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as hf
from gguf import GGMLQuantizationType, GGUFWriter, quants

from .families import SHAPE, build_tokenizer, randomize_weights

WIDE = {**SHAPE, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
"""Rows of whole super blocks."""
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 16}
"""What transformers' loader takes for granted."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**SHAPE),
    "llama-tied": lambda: hf.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-biases": lambda: hf.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama-wide": lambda: hf.LlamaConfig(**WIDE),
    "qwen2": lambda: hf.Qwen2Config(**SHAPE),
    "qwen3": lambda: hf.Qwen3Config(**SHAPE, head_dim=16),
    "gemma2": lambda: hf.Gemma2Config(**SHAPE, **GEMMA),
    "gemma3": lambda: hf.Gemma3TextConfig(**SHAPE, **GEMMA, rope_parameters=None),
    "phi3": lambda: hf.Phi3Config(**SHAPE),
    "starcoder2": lambda: hf.Starcoder2Config(**SHAPE, tie_word_embeddings=False),
    "qwen2moe": lambda: hf.Qwen2MoeConfig(**SHAPE, **EXPERTS, shared_expert_intermediate_size=64),
    "qwen3moe": lambda: hf.Qwen3MoeConfig(**SHAPE, **EXPERTS, head_dim=16, norm_topk_prob=True),
}
ARCHITECTURES = {"llama-tied": "llama", "llama-biases": "llama", "llama-wide": "llama"}


@dataclass(frozen=True, kw_only=True)
class TinyGguf:
    """What to write.

    Attributes:
        family: a key of CONFIGS.
        matrix_type: of the layers' matrices, by ggml's name.
        embedding_type: of embedding and head.
        metadata: values to set besides, by key.
        tensors: further tensors.
        leave_out: metadata keys to leave out.
        split_tensors: tensors a file; 0 for one file.
    """

    family: str = "llama"
    matrix_type: str = "F32"
    embedding_type: str = "F32"
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    split_tensors: int = 0

    @property
    def architecture(self) -> str:
        """What the file calls it."""
        return ARCHITECTURES.get(self.family, self.family)


def build_model(family: str) -> hf.PreTrainedModel:
    """The random model that a tiny file of the family holds, in float32."""
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
    randomize_weights(model)
    return model.eval()


def write_tiny_gguf(path: Path, tiny: TinyGguf | None = None, **settings: Any) -> Path:
    """Writes a file, and returns the path of it or of the split's first file."""
    tiny = tiny or TinyGguf(**settings)
    model = build_model(tiny.family)
    writer = GGUFWriter(path, tiny.architecture, split_max_tensors=tiny.split_tensors)
    for key, value in (_metadata(tiny, model.config) | _tokenizer() | tiny.metadata).items():
        if key not in tiny.leave_out:
            _add_value(writer, key, value)
    for name, values in _tensors(tiny, model).items():
        writer.add_tensor(name, *_encode(name, values, tiny))
    for name, values in tiny.tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not tiny.split_tensors:
        return path
    return sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0]


def random_rows(type_name: str, num_rows: int, blocks_per_row: int, *, scale: float = 0.02) -> np.ndarray:
    """Random codes and small scales of both signs, [N, bytes of a row] uint8."""
    kind, generator = GGMLQuantizationType[type_name], np.random.default_rng(0)
    num_blocks, num_bytes = num_rows * blocks_per_row, gguf.GGML_QUANT_SIZES[kind][1]
    if type_name in ("F32", "BF16"):
        values = generator.normal(size=num_blocks).astype(np.float32).view(np.uint8).reshape(num_blocks, 4)
        return values[:, -num_bytes:].reshape(num_rows, -1).copy()
    rows = generator.integers(0, 256, (num_blocks, num_bytes), np.uint8)
    for at in HALVES[type_name]:
        halves = generator.normal(scale=scale, size=(num_blocks, 1)).astype(np.float16)
        rows[:, at : at + 2] = halves.view(np.uint8)
    return rows.reshape(num_rows, -1)


HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "F16": (0,)},
}
"""Where a block's float16 numbers lie: all other bytes may be anything."""


def _metadata(tiny: TinyGguf, config: hf.PreTrainedConfig) -> dict[str, Any]:
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    epsilon = (
        "attention.layer_norm_epsilon" if tiny.family == "starcoder2" else "attention.layer_norm_rms_epsilon"
    )
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(rope["rope_theta"]),
        epsilon: getattr(config, "rms_norm_eps", None) or config.norm_epsilon,
    }
    if "gemma" in tiny.family:
        values["attention.sliding_window"] = config.sliding_window
    if "moe" in tiny.family:
        values |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
        values["expert_feed_forward_length"] = config.moe_intermediate_size
    if tiny.family == "qwen2moe":
        values["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    return {f"{tiny.architecture}.{key}": value for key, value in values.items()}


def _tokenizer() -> dict[str, Any]:
    tokenizer = build_tokenizer()
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            3 if token.startswith("<") and len(token) > 2 else 1 for token in tokens
        ],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def _add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _tensors(tiny: TinyGguf, model: hf.PreTrainedModel) -> dict[str, np.ndarray]:
    """Every tensor by llama.cpp's name, converted but not encoded."""
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == tiny.architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if name.endswith("experts.gate_up_proj"):
            block = name.split(".")[2]
            gate, up = np.split(values, 2, axis=1)
            tensors |= {f"blk.{block}.ffn_gate_exps.weight": gate, f"blk.{block}.ffn_up_exps.weight": up}
            continue
        stem, _, leaf = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "weight")
        found = names.get_name(stem)
        assert found is not None, f"the gguf package has no name for {name}"
        tensors[f"{found}.{leaf}"] = _convert(found, values, tiny, model.config)
    return tensors


def _convert(name: str, values: np.ndarray, tiny: TinyGguf, config: hf.PreTrainedConfig) -> np.ndarray:
    if "gemma" in tiny.family and name.endswith("norm"):
        return values + 1
    if name.endswith("ffn_gate_inp_shexp"):
        return values[0]
    if tiny.architecture == "llama" and name.endswith(("attn_q", "attn_k")):
        heads = config.num_attention_heads if name.endswith("attn_q") else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    return values


def _encode(name: str, values: np.ndarray, tiny: TinyGguf) -> tuple[np.ndarray, Any, GGMLQuantizationType]:
    """(data, shape as it lies, type) as GGUFWriter takes them."""
    is_end = name.startswith(("token_embd", "output."))
    type_name = tiny.embedding_type if is_end else tiny.matrix_type
    if values.ndim < 2 or "norm" in name or "ffn_gate_inp" in name:
        type_name = "F32"
    kind = GGMLQuantizationType[type_name]
    values = np.ascontiguousarray(values, np.float32)
    if type_name.endswith("_K") or type_name.startswith("IQ"):
        block = gguf.GGML_QUANT_SIZES[kind][0]
        scale = 2e-5 if block == 256 else 2e-3
        rows = random_rows(type_name, values[..., 0].size, values.shape[-1] // block, scale=scale)
        return rows.reshape(*values.shape[:-1], -1), None, kind
    return quants.quantize(values, kind), None, kind
