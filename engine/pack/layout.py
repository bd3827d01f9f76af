"""What `strata pack` will leave: which weight becomes what, in which file, and what config.json says of it.

Flow: checkpoint headers -> an encoding a stored weight -> files of a bounded size -> index and config. Names
stay those of the source. Packed are the linear modules of decoder layers that `--dtype int8` computes with;
embedding, norms, biases, routers and heads stay plain. A mixture's experts, which transformers 5 merges into
one tensor, become int8 one by one (its compressed-tensors loader reads them neither so nor plain), but stay
plain beside NF4, since so its bitsandbytes loader reads them. Reads no values but the small tensors that say
how a weight is quantised.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import dot_natural_key

from strata.engine.model.rehearsal import build_rehearsed
from strata.engine.pack.config import PackConfig
from strata.engine.pack.config_json import PLAIN_DTYPES, make_config, quantization_settings
from strata.engine.pack.encodings import Encoding, Int8Matrix, Nf4Matrix, store_plain
from strata.engine.pack.safetensors_writer import FileLayout, plan_layout
from strata.engine.pack.smoothing import RescaledWeight, Smoothing
from strata.engine.pack.source import files_to_copy, source_config, source_weights
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.checkpoint_folder import SINGLE_FILE
from strata.engine.weights.first_layers import is_beyond
from strata.engine.weights.formats.stored_weight import PlainWeight, StoredWeight
from strata.engine.weights.safetensors_file import FLOATING_DTYPES

HEADS = ("lm_head", "score")
UNCHANGED = Smoothing()


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """One file: its name, the weights it holds, and where their tensors lie."""

    name: str
    encodings: tuple[Encoding, ...]
    layout: FileLayout

    @property
    def source_bytes(self) -> int:
        """Bytes that are read to write it."""
        return sum(encoding.weight.num_bytes for encoding in self.encodings)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackPlan:
    """Everything a pack leaves.

    Attributes:
        shards: the safetensors files in order.
        config: content of config.json.
        copied: files of the source that are taken over as they are.
        num_packed: weights that become int8 or NF4, those of experts included.
        num_experts: matrices of experts, which transformers merges.
    """

    shards: tuple[Shard, ...]
    config: dict[str, Any]
    copied: tuple[Path, ...]
    num_packed: int
    num_experts: int

    @property
    def num_source_bytes(self) -> int:
        """Bytes of weights that are read."""
        return sum(shard.source_bytes for shard in self.shards)

    @property
    def num_packed_bytes(self) -> int:
        """Bytes of the safetensors files."""
        return sum(shard.layout.num_bytes for shard in self.shards)

    @property
    def index(self) -> dict[str, Any] | None:
        """Content of the index; None where one file holds everything, as transformers has it."""
        if len(self.shards) == 1:
            return None
        weight_map = {name: shard.name for shard in self.shards for name in shard.layout.specs}
        specs = [spec for shard in self.shards for spec in shard.layout.specs.values()]
        return {
            "metadata": {"total_size": sum(spec.num_bytes for spec in specs)},
            "weight_map": dict(sorted(weight_map.items())),
        }


@dataclass(frozen=True, kw_only=True)
class Linears:
    """The linear modules of decoder layers.

    Attributes:
        packed: stored names of the weights that are packed.
        experts: stored names of the matrices that transformers stacks into one tensor of experts.
        plain: paths inside their layer of modules that stay plain -> the layers they do so in.
        num_layers: all layers.
    """

    packed: frozenset[str]
    experts: frozenset[str]
    plain: Mapping[str, tuple[int, ...]]
    num_layers: int

    @property
    def plain_suffixes(self) -> list[str]:
        """How the full names of the plain modules end."""
        return [
            suffix
            for path, layers in sorted(self.plain.items())
            for suffix in (
                [path] if len(layers) == self.num_layers else [f"layers.{layer}.{path}" for layer in layers]
            )
        ]


def plan_pack(checkpoint: Checkpoint, config: PackConfig, smoothing: Smoothing = UNCHANGED) -> PackPlan:
    """Decides everything before any weight is read; what `smoothing` names is written multiplied.

    Raises:
        InputError: the checkpoint lacks a weight, or holds one that cannot be decoded, or no linear module
            has a name that is to stay plain.
    """
    weights = _stored_weights(checkpoint, None if config.layers is None else checkpoint.num_layers)
    linears = find_linears(checkpoint, config.plain)
    packed: frozenset[str] = frozenset()
    if config.format not in PLAIN_DTYPES:
        packed = linears.packed | (linears.experts if config.format == "int8" else frozenset())
        packed -= smoothing.plain
    encodings = [
        _choose_encoding(smoothing.apply(weight), packed, checkpoint, config, smoothing) for weight in weights
    ]
    settings = quantization_settings(
        config,
        checkpoint.stored_dtype,
        [*_ignored_modules(linears, weights), *map(_module, sorted(smoothing.plain))],
    )
    return PackPlan(
        shards=_cut_into_shards(encodings, config.shard_bytes),
        config=make_config(
            source_config(checkpoint),
            settings,
            PLAIN_DTYPES.get(config.format),
            num_layers=checkpoint.num_layers,
        ),
        copied=files_to_copy(checkpoint.path),
        num_packed=len(packed),
        num_experts=len(linears.experts),
    )


def find_linears(checkpoint: Checkpoint, kept: Collection[str] = ()) -> Linears:
    """Which modules of the decoder's layers are packed, and which linear ones are not.

    Args:
        checkpoint: what is packed.
        kept: names of modules that are to stay plain ("v_proj").

    Raises:
        InputError: an architecture strata does not run, a weight that the checkpoint lacks, or a name in
            `kept` that no module has.
    """
    decoder = build_rehearsed(checkpoint.config)
    decoder.quantize_linears()
    packed: set[str] = set()
    experts: set[str] = set()
    plain: dict[str, list[int]] = defaultdict(list)
    seen: set[str] = set()
    for layer, module in enumerate(decoder.layers):
        for name, shape in decoder.layer_shapes(layer).items():
            source = checkpoint.require(f"layers.{layer}.{name}")
            names = {weight.name for weight, _ in source.parts if len(weight.shape) == 2}
            if len(shape) == 3:
                experts |= names
            elif name in decoder.int8_names(layer):
                path = name.removesuffix(".weight")
                seen.add(path.rpartition(".")[2])
                if source.single is None or path.rpartition(".")[2] in kept:
                    plain[path].append(layer)
                else:
                    packed |= names
        for path, linear in module.named_modules():
            if isinstance(linear, nn.Linear):
                plain[path].append(layer)
                seen.add(path.rpartition(".")[2])
    if unknown := sorted(set(kept) - seen):
        raise InputError(
            f"--plain: no linear layer is called {unknown[0]!r}; expected some of {', '.join(sorted(seen))}"
        )
    return Linears(
        packed=frozenset(packed),
        experts=frozenset(experts),
        plain={path: tuple(layers) for path, layers in plain.items()},
        num_layers=checkpoint.num_layers,
    )


def packed_weights(
    checkpoint: Checkpoint, smoothing: Smoothing, kept: Collection[str] = ()
) -> Iterator[StoredWeight]:
    """The linear weights that int8 packs, as they will be before they are rounded, but for those `kept`.

    Raises:
        InputError: see `find_linears`.
    """
    packed = find_linears(checkpoint, kept).packed
    for weight in source_weights(checkpoint):
        if weight.name in packed:
            yield smoothing.apply(weight)


def _stored_weights(checkpoint: Checkpoint, num_layers: int | None) -> list[StoredWeight]:
    """Every weight under the name it is stored by, layer after layer, or those of the first layers alone."""
    weights = source_weights(checkpoint)
    if num_layers is not None:
        weights = [weight for weight in weights if not is_beyond(weight.name, num_layers)]
    quantized = {_module(weight.name) for weight in weights if not isinstance(weight, PlainWeight)}
    kept = [weight for weight in weights if not _is_left_over(weight, quantized)]
    return sorted(kept, key=lambda weight: dot_natural_key(weight.name))


def _is_left_over(weight: StoredWeight, quantized: Set[str]) -> bool:
    """Whether a tensor belongs to a quantised weight, such as a scale of activations, and to nothing else."""
    if not isinstance(weight, PlainWeight) or weight.name.endswith(".bias"):
        return False
    return any(owner in quantized for owner in accumulate(weight.name.split("."), "{}.{}".format))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _choose_encoding(
    weight: StoredWeight,
    packed: frozenset[str],
    checkpoint: Checkpoint,
    config: PackConfig,
    smoothing: Smoothing,
) -> Encoding:
    if isinstance(weight, RescaledWeight) and weight.offset:
        # Not a product alone, so only float32 holds it without rounding.
        return store_plain(weight, torch.float32)
    if config.format in PLAIN_DTYPES:
        return store_plain(weight, PLAIN_DTYPES[config.format])
    if weight.name not in packed:
        return store_plain(weight, _kept_dtype(weight) or checkpoint.stored_dtype)
    if config.format == "int8":
        return Int8Matrix(weight=weight, moments=smoothing.moments.get(weight.name))
    plain_dtype = weight.dtype if isinstance(weight, PlainWeight) else checkpoint.stored_dtype
    loader_dtype = torch.float32 if plain_dtype == torch.float64 else plain_dtype
    return Nf4Matrix(weight=weight, dtype=loader_dtype, double_quant=config.double_quant)


def _kept_dtype(weight: StoredWeight) -> torch.dtype | None:
    """The dtype of what is stored as numbers, None for codes."""
    if isinstance(weight, RescaledWeight):
        return _kept_dtype(weight.source)
    if isinstance(weight, PlainWeight):
        return weight.tensor.torch_dtype
    return FLOATING_DTYPES.get(weight.format_name.upper())


def _cut_into_shards(encodings: Sequence[Encoding], shard_bytes: int) -> tuple[Shard, ...]:
    groups: list[list[Encoding]] = [[]]
    filled = 0
    for encoding in encodings:
        num_bytes = sum(spec.num_bytes for spec in encoding.specs)
        if groups[-1] and filled + num_bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(encoding)
        filled += num_bytes
    return tuple(
        Shard(
            name=f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else SINGLE_FILE,
            encodings=tuple(group),
            layout=plan_layout(spec for encoding in group for spec in encoding.specs),
        )
        for number, group in enumerate(groups, start=1)
    )


def _ignored_modules(linears: Linears, weights: Iterable[StoredWeight]) -> list[str]:
    """Ends of the names of linear modules, heads among them, that loaders must not expect packed."""
    beside_layers = {
        weight.name.removesuffix(".weight")
        for weight in weights
        if len(weight.shape) == 2 and ".layers." not in f".{weight.name}"
    }
    heads = {name for name in beside_layers if not name.endswith("embed_tokens")} | set(HEADS)
    return [*linears.plain_suffixes, *sorted(heads)]
