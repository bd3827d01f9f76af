"""`strata bench trace`: kernels, masks and attention scores of a decoder layer at true sizes, without a card.

The layer runs on the meta device, where tensors have shapes and no elements, and every operator that would
launch a kernel on a card is counted; what is done on the way from files to a layer is not. Attention is the
variable-length one of a T4 ("efficient"), of later cards ("flash"), or SDPA a sequence ("sdpa"); norms,
rotation and gates are the fused ones. Bytes that all but products and attention move, over the D + F elements
of a token, are what a profile's `elements_per_s` follows from: a card's memory rate over them.
Knows no rates: it counts. Legend: D model dim, F FFN.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from strata.engine.model.attention import AttentionCall
from strata.engine.model.decoder import build_decoder
from strata.engine.plan.shapes import SHAPES, ModelShape, to_llama_config
from strata.engine.tree.intervals import indexes
from strata.engine.tree.lanes import MicroBatch, split_lanes
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree, count_visible
from strata.engine.tree.tiles import tile_finder
from strata.kernels.elementwise.operators import TRITON
from strata.kernels.prefix_attention.backend import Backend
from strata.kernels.prefix_attention.sdpa import SdpaBackend
from strata.kernels.prefix_attention.sequences import plan_sequences
from strata.kernels.prefix_attention.varlen import EFFICIENT, FLASH
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.record import (
    RESULTS,
    append_result,
    asked_settings,
    print_environment,
    print_table,
)
from strata.scripts.bench.trace.config import TraceBenchConfig
from strata.scripts.bench.workloads.synthetic_questions import synthetic_questions, whole_rows

META = torch.device("meta")
BACKENDS: dict[str, Backend] = {"efficient": EFFICIENT, "flash": FLASH, "sdpa": SdpaBackend()}
WITHOUT_KERNEL = {"empty", "empty_strided", "new_empty", "empty_like", "detach", "alias", "_unsafe_view"}
"""Operators that launch nothing, beside views."""
PRODUCTS = {"linear", "mm", "addmm", "bmm", "baddbmm"}
GATHERS = {"index", "index_select", "embedding", "gather", "strata::gather_keys"}
WRITES = {"copy_", "fill_", "zero_"}
"""Operators that move other bytes than those of all that they are given and give."""
ROUNDING_BYTES = 2 + 3
"""Of an element that goes into int8 products: read for its column's largest value, read again and written as
a code, two launches on a card."""


@dataclass
class KernelCounter(TorchDispatchMode):
    """Counts operators on the meta device that would launch a kernel, and bytes of masks that they make.

    `moved_bytes` are what all but products and attention read and write.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    mask_bytes: int = 0
    moved_bytes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator, and counts it."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        name = func._schema.name.removeprefix("aten::")
        given = {tensor.untyped_storage()._cdata for tensor in inputs}
        # An operator that may copy, as reshape does, is a view only if it gave the memory that it got.
        is_view = not func._schema.is_mutable and all(
            tensor.untyped_storage()._cdata in given for tensor in outputs
        )
        if is_view or name in WITHOUT_KERNEL or not any(tensor.device == META for tensor in outputs):
            return result
        self.kernels[name] += 1
        self.mask_bytes += sum(tensor.nbytes for tensor in outputs if tensor.dtype == torch.bool)
        if name not in PRODUCTS and "attention" not in name:
            self.moved_bytes += _moved_bytes(name, inputs, outputs)
        return result


def _moved_bytes(name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> int:
    """Bytes that an operator reads and writes, each element once."""
    written = sum(map(_bytes, outputs))
    if name in GATHERS:
        # Of the table only what is taken.
        return 2 * written + sum(_bytes(tensor) for tensor in inputs if not tensor.is_floating_point())
    if name in WRITES:
        inputs = inputs[1:]
    return written + sum(map(_bytes, inputs))


def _bytes(tensor: torch.Tensor) -> int:
    """Of the elements that lie in memory: an expanded dimension has one."""
    lengths = (length if stride else 1 for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.itemsize * prod(lengths)


def run_trace_bench(config: TraceBenchConfig) -> int:
    """Counts for every way of attention, prints and appends the result."""
    print_environment()
    figures = {name: trace_layer(config, backend) for name, backend in BACKENDS.items()}
    print_table([{"attention": name, **found} for name, found in figures.items()])
    append_result("trace", figures | {"config": asked_settings(config)}, RESULTS)
    return 0


def trace_layer(config: TraceBenchConfig, backend: Backend) -> dict[str, float]:
    """What one micro-batch asks in one layer that is not the last, past its first layer.

    Returns:
        Kernels and mask bytes of the layer; calls of attention and its sequences; gathered keys over those of
        the key space; scores that are computed over those that are needed; bytes that all but products and
        attention move, over the D + F elements of a token, hidden states kept on the card included, and the
        same where int8 products want their inputs rounded.
    """
    shape = SHAPES[config.shape]
    tree, batch = _second_micro_batch(config, shape)
    decoder = build_decoder(to_llama_config(shape), torch.float16)
    decoder.prepare_rope(int(tree.position_ids.max()), META, torch.float16)
    decoder.fuse(TRITON, torch.device("cpu"), torch.float16)
    layer, tiles_of = decoder.layers[0].half(), tile_finder(tree, batch, scored=False)
    position_ids = torch.empty(batch.num_rows, dtype=torch.int64, device=META)
    hidden_TD = torch.empty(batch.num_rows, shape.hidden_size, dtype=torch.float16, device=META)
    carried = torch.empty(
        2, shape.num_kv_heads, batch.num_carried, shape.head_dim, dtype=torch.float16, device=META
    )
    assert next(layer.parameters()).device == META
    counter = KernelCounter()
    with torch.inference_mode():
        tiles = tiles_of(backend.cut, None)
        plan = plan_sequences(tiles, META, shares=getattr(backend, "part", None) is not None)
        with counter:
            call = AttentionCall(
                tiles_of=tiles_of, carried=carried if batch.num_carried else None, backend=backend
            )
            decoder.run_layer(0, hidden_TD, position_ids, call)
    shared = [call.shared.call for call in plan.calls if call.shared is not None]
    calls = [*plan.calls, *shared]
    gathered = sum(call.num_keys for call in calls)
    needed = int(count_visible(tree)[indexes(batch.rows)].sum())
    width, heads = shape.hidden_size, shape.num_heads * shape.head_dim
    elements = width + shape.intermediate_size
    stored = 2 * hidden_TD.nbytes
    moved = (counter.moved_bytes + stored) / (batch.num_rows * elements)
    # What q, k and v read, o, gate and up, and down.
    rounded = (width + heads + width + shape.intermediate_size) / elements
    return {
        "kernels_per_layer": counter.kernels.total(),
        "mask_bytes_per_layer": counter.mask_bytes,
        "attention_calls": len(calls),
        "sequences": len(tiles),
        "gathered_over_keys": gathered / (batch.num_carried + batch.num_rows),
        "scores_over_needed": _scores(tiles) / needed,
        "moved_bytes_per_element": moved,
        "int8_moved_bytes_per_element": moved + ROUNDING_BYTES * rounded,
    }


def _scores(tiles: Any) -> int:
    """Scores that a kernel which skips what is behind the diagonal computes."""
    return sum(
        tile.num_rows * tile.num_keys - (tile.num_rows * (tile.num_rows - 1) // 2 if tile.causal else 0)
        for tile in tiles
    )


def _second_micro_batch(config: TraceBenchConfig, shape: ModelShape) -> tuple[PrefixTree, MicroBatch]:
    """One of many: it carries keys, and begins and ends inside questions."""
    size = QuestionSize(
        prefix_tokens=config.prefix_tokens,
        option_tokens=config.option_tokens,
        num_options=config.num_options,
    )
    tokens = config.prefix_tokens + config.num_options * config.option_tokens
    num_questions = 2 + 2 * config.micro_batch_tokens // tokens
    questions = synthetic_questions(num_questions, size, vocab_size=shape.vocab_size)
    tree = build_prefix_tree([row.astype(np.int32) for each in questions for row in whole_rows(each)])
    (lane,) = split_lanes(tree, np.array([tree.num_tokens - 1]), 1, config.micro_batch_tokens)
    return tree, lane.micro_batches[1]
