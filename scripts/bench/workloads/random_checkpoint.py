"""Writes Llama checkpoints of random weights as Hugging Face directories; knows nothing of what reads them.

Weights are normal(0, 0.02), as transformers initialises them, and norms are ones. The numbers come from one
pool of prime length: every tensor starts at another place in it and runs round it, so that no two tensors and
no two rows of a tensor are alike, and a 70B checkpoint costs little more than writing it. With a quantised
storage the decoder layers' matrices are random codes in that format's layout (`random_storage`).
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from strata.engine.plan.shapes import ModelShape, to_llama_config
from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import CONFIG_FILE, INDEX_FILE, weight_files
from strata.scripts.bench.workloads.flops import num_parameters
from strata.scripts.bench.workloads.random_storage import (
    QUANTIZATION_CONFIGS,
    STORAGES,
    RandomTensor,
    Storage,
    linear_tensors,
    stored_bits,
)

if TYPE_CHECKING:
    import torch

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
INITIALIZER_STD = 0.02
RECIPE_NAME = "random_checkpoint.json"
POOL_LENGTH = 4_194_301
FREE_DISK_MARGIN_BYTES = 64 << 20
SHARD_BYTES = 2 << 30
"""Most bytes of tensors in a file, unless one tensor alone is larger."""

TensorShapes = dict[str, tuple[int, ...]]
RandomTensors = dict[str, RandomTensor]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the bytes of a random checkpoint."""

    shape: ModelShape
    dtype: str
    storage: Storage | None
    seed: int

    def __post_init__(self) -> None:
        if self.dtype not in BYTES_PER_VALUE:
            raise InputError(f"dtype {self.dtype!r}: expected one of {', '.join(BYTES_PER_VALUE)}")
        if self.storage is not None and self.storage not in STORAGES:
            raise InputError(f"storage {self.storage!r}: expected one of {', '.join(STORAGES)}")

    def as_json(self) -> dict[str, object]:
        """What is kept beside the checkpoint, to know it again."""
        plain = {"shape": asdict(self.shape), "dtype": self.dtype, "seed": self.seed}
        return plain | {"shard_bytes": SHARD_BYTES} | ({"storage": self.storage} if self.storage else {})


def make_random_checkpoint(
    shape: ModelShape, out: Path, *, dtype: str = "bfloat16", storage: Storage | None = None, seed: int = 0
) -> Path:
    """Writes a random checkpoint (config.json and safetensors, no tokenizer), or reuses one that is there.

    The folder is written as `<out>.partial` and renamed when whole. Peak memory: one shard.

    Args:
        shape: The model.
        out: The directory to make; its parents are made too.
        dtype: float32, bfloat16 or float16; with a quantised storage, of all that is not quantised.
        storage: The format of the decoder layers' matrices; None stores them in `dtype`.
        seed: Decides the numbers; the same seed gives the same weights.

    Returns:
        `out`.

    Raises:
        InputError: Unknown dtype or storage, too little free disk, or `out` holds something else.
    """
    recipe = Recipe(shape=shape, dtype=dtype, storage=storage, seed=seed)
    if out.exists() and not _is_empty_folder(out):
        _check_reusable(out, recipe.as_json())
        return out
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _check_free_disk(partial, recipe)
        _write_checkpoint(partial, recipe)
        text = json.dumps(recipe.as_json(), indent=2) + "\n"
        (partial / RECIPE_NAME).write_text(text, encoding="ascii")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_reusable(out: Path, recipe: dict[str, object]) -> None:
    """Raises InputError unless `out` is a whole checkpoint made by exactly this recipe."""
    recipe_path = out / RECIPE_NAME
    if not recipe_path.is_file():
        raise InputError(
            f"{out}: exists and holds no {RECIPE_NAME}; expected a new folder or a random checkpoint"
        )
    found = json.loads(recipe_path.read_text(encoding="ascii"))
    different = sorted(key for key in {*recipe, *found} if found.get(key) != recipe.get(key))
    if different:
        raise InputError(f"{out}: made with another {', '.join(different)}; give another folder or remove it")
    missing = [name for name in _file_names(out) if not (out / name).is_file()]
    if missing:
        raise InputError(f"{out}: {missing[0]} is missing; remove the folder to make it anew")


def _file_names(out: Path) -> list[str]:
    return [CONFIG_FILE, *(file.name for file in weight_files(out))]


def _check_free_disk(folder: Path, recipe: Recipe) -> None:
    shape, storage, itemsize = recipe.shape, recipe.storage, BYTES_PER_VALUE[recipe.dtype]
    bits = 8 * itemsize if storage is None else stored_bits(storage)
    beside_layers = 2 * shape.vocab_size * shape.hidden_size
    in_layers = num_parameters(shape) - beside_layers
    needed_bytes = int(in_layers * bits / 8) + beside_layers * itemsize + FREE_DISK_MARGIN_BYTES
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise InputError(
            f"{folder.parent}: {free_bytes / 2**30:.1f} GiB free, but {shape.name} in "
            f"{storage or recipe.dtype} needs {needed_bytes / 2**30:.1f} GiB"
        )


def _write_checkpoint(folder: Path, recipe: Recipe) -> None:
    import torch
    from safetensors.torch import save_file

    config = to_llama_config(recipe.shape)
    config.dtype = getattr(torch, recipe.dtype)
    if recipe.storage is not None:
        config.quantization_config = QUANTIZATION_CONFIGS[recipe.storage]
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(recipe.seed)
    values = torch.randn(POOL_LENGTH, generator=generator).mul_(INITIALIZER_STD).to(config.dtype)
    codes = torch.randint(256, (POOL_LENGTH,), generator=generator, dtype=torch.uint8)
    tensors = _random_tensors(recipe)
    shards = _split_into_shards(tensors)
    names = _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        made = {key: _make_tensor(key, one, values, codes, generator) for key, one in shard.items()}
        save_file(made, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        _write_index(folder / INDEX_FILE, names, shards, sum(map(_num_bytes, tensors.values())))


def _random_tensors(recipe: Recipe) -> RandomTensors:
    """Every stored tensor by name, in the order a forward pass needs them."""
    tensors: RandomTensors = {}
    for name, size in _tensor_shapes(recipe.shape).items():
        if recipe.storage is not None and ".layers." in name and len(size) == 2:
            tensors |= linear_tensors(recipe.storage, name, (size[0], size[1]))
        else:
            tensors[name] = RandomTensor(shape=size, dtype=recipe.dtype)
    return tensors


def _make_tensor(
    name: str, tensor: RandomTensor, values: torch.Tensor, codes: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    import torch

    dtype = getattr(torch, tensor.dtype)
    if name.endswith("norm.weight"):
        return torch.ones(tensor.shape, dtype=dtype)
    pool = values if dtype == values.dtype and tensor.fill is None else codes
    start = int(torch.randint(POOL_LENGTH, (), generator=generator))
    num_values = _num_bytes(tensor) // pool.dtype.itemsize
    num_rounds = -(-num_values // POOL_LENGTH)
    made = pool.roll(-start).repeat(num_rounds)[:num_values].view(dtype).reshape(tensor.shape)
    return made if tensor.fill is None else tensor.fill(made)


def _num_bytes(tensor: RandomTensor) -> int:
    import torch

    return math.prod(tensor.shape) * getattr(torch, tensor.dtype).itemsize


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


def _split_into_shards(tensors: RandomTensors) -> list[RandomTensors]:
    shards: list[RandomTensors] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = _num_bytes(tensor)
        if shards[-1] and used + size > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


def _shard_names(num_shards: int) -> list[str]:
    if num_shards == 1:
        return ["model.safetensors"]
    return [f"model-{index:05d}-of-{num_shards:05d}.safetensors" for index in range(1, num_shards + 1)]


def _write_index(path: Path, names: list[str], shards: list[RandomTensors], total_bytes: int) -> None:
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="ascii")
