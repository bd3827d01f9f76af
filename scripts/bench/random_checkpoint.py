"""Writes Llama checkpoints of random weights as Hugging Face directories; knows nothing of what reads them.

Weights are normal(0, 0.02), as transformers initialises them, and norms are ones. The numbers come from one
pool of prime length: every tensor starts at its own place in it and runs round it, so that no two tensors and
no two rows of a tensor are alike, and a 70B checkpoint costs little more than writing it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from strata.engine.types import InputError
from strata.scripts.bench.shapes import ModelShape, num_parameters, to_llama_config

if TYPE_CHECKING:
    import torch

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
INITIALIZER_STD = 0.02
INDEX_NAME = "model.safetensors.index.json"
RECIPE_NAME = "random_checkpoint.json"
POOL_LENGTH = 4_194_301
FREE_DISK_MARGIN_BYTES = 64 << 20

TensorShapes = dict[str, tuple[int, ...]]


def make_random_checkpoint(
    shape: ModelShape, out: Path, *, dtype: str = "bfloat16", seed: int = 0, shard_bytes: int = 2 << 30
) -> Path:
    """Write a random checkpoint (config.json and safetensors; no tokenizer), or reuse the one that is there.

    The folder is written as `<out>.partial` and renamed when whole. Peak memory: one shard.

    Args:
        shape: The model.
        out: The directory to make; its parents are made too.
        dtype: float32, bfloat16 or float16.
        seed: Decides the numbers; the same seed gives the same weights.
        shard_bytes: Most bytes of tensors in a file, unless one tensor alone is larger.

    Returns:
        `out`.

    Raises:
        InputError: Unknown dtype, too little free disk, or `out` holds something else.
    """
    if dtype not in BYTES_PER_VALUE:
        raise InputError(f"dtype {dtype!r}: expected one of {', '.join(BYTES_PER_VALUE)}")
    recipe = {"shape": asdict(shape), "dtype": dtype, "seed": seed, "shard_bytes": shard_bytes}
    if out.exists() and not _is_empty_folder(out):
        _check_reusable(out, recipe)
        return out
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _check_free_disk(partial, shape, dtype)
        _write_checkpoint(partial, shape, dtype, seed, shard_bytes)
        (partial / RECIPE_NAME).write_text(json.dumps(recipe, indent=2) + "\n", encoding="ascii")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_reusable(out: Path, recipe: dict[str, object]) -> None:
    """Raise InputError unless `out` is a whole checkpoint made by exactly this recipe."""
    recipe_path = out / RECIPE_NAME
    if not recipe_path.is_file():
        raise InputError(
            f"{out}: exists and holds no {RECIPE_NAME}; expected a new folder or a random checkpoint"
        )
    found = json.loads(recipe_path.read_text(encoding="ascii"))
    different = [key for key in recipe if found.get(key) != recipe[key]]
    if different:
        raise InputError(f"{out}: made with another {', '.join(different)}; give another folder or remove it")
    missing = [name for name in _file_names(out) if not (out / name).is_file()]
    if missing:
        raise InputError(f"{out}: {missing[0]} is missing; remove the folder to make it anew")


def _file_names(out: Path) -> list[str]:
    index_path = out / INDEX_NAME
    if not index_path.is_file():
        return ["config.json", "model.safetensors"]
    weight_map = json.loads(index_path.read_text(encoding="ascii"))["weight_map"]
    return ["config.json", *sorted(set(weight_map.values()))]


def _check_free_disk(folder: Path, shape: ModelShape, dtype: str) -> None:
    needed_bytes = num_parameters(shape) * BYTES_PER_VALUE[dtype] + FREE_DISK_MARGIN_BYTES
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise InputError(
            f"{folder.parent}: {free_bytes / 2**30:.1f} GiB free, but {shape.name} in {dtype} needs "
            f"{needed_bytes / 2**30:.1f} GiB"
        )


def _write_checkpoint(folder: Path, shape: ModelShape, dtype: str, seed: int, shard_bytes: int) -> None:
    import torch
    from safetensors.torch import save_file

    config = to_llama_config(shape)
    config.dtype = getattr(torch, dtype)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(POOL_LENGTH, generator=generator).mul_(INITIALIZER_STD).to(config.dtype)
    shards = _split_into_shards(_tensor_shapes(shape), shard_bytes // BYTES_PER_VALUE[dtype])
    names = _shard_names(len(shards))
    for name, tensor_shapes in zip(names, shards, strict=True):
        tensors = {key: _make_tensor(key, size, pool, generator) for key, size in tensor_shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        _write_index(folder / INDEX_NAME, names, shards, num_parameters(shape) * BYTES_PER_VALUE[dtype])


def _make_tensor(
    name: str, size: tuple[int, ...], pool: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    import torch

    if name.endswith("norm.weight"):
        return torch.ones(size, dtype=pool.dtype)
    start = int(torch.randint(POOL_LENGTH, (), generator=generator))
    numel = size[0] * size[1]
    num_rounds = -(-numel // POOL_LENGTH)
    return pool.roll(-start).repeat(num_rounds)[:numel].reshape(size)


def _tensor_shapes(shape: ModelShape) -> TensorShapes:
    """Every tensor's name and shape, in the order a forward pass needs them."""
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    query_dim, kv_dim = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer: TensorShapes = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (query_dim, hidden),
        "self_attn.k_proj": (kv_dim, hidden),
        "self_attn.v_proj": (kv_dim, hidden),
        "self_attn.o_proj": (hidden, query_dim),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    tensors: TensorShapes = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for index in range(shape.num_layers):
        tensors |= {f"model.layers.{index}.{name}.weight": size for name, size in layer.items()}
    return tensors | {"model.norm.weight": (hidden,), "lm_head.weight": (shape.vocab_size, hidden)}


def _split_into_shards(tensors: TensorShapes, shard_values: int) -> list[TensorShapes]:
    shards: list[TensorShapes] = [{}]
    used = 0
    for name, size in tensors.items():
        numel = size[0] * (size[1] if len(size) > 1 else 1)
        if shards[-1] and used + numel > shard_values:
            shards.append({})
            used = 0
        shards[-1][name] = size
        used += numel
    return shards


def _shard_names(num_shards: int) -> list[str]:
    if num_shards == 1:
        return ["model.safetensors"]
    return [f"model-{index:05d}-of-{num_shards:05d}.safetensors" for index in range(1, num_shards + 1)]


def _write_index(path: Path, names: list[str], shards: list[TensorShapes], total_bytes: int) -> None:
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="ascii")
