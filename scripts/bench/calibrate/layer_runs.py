"""Times one random decoder layer on synthetic questions, through the engine's worker, and its parts.

Data flow: a Llama shape -> one layer of random weights -> a lane of micro-batches of equal questions -> least
seconds of the lane. What a calibration is fitted to.
Legend: M rows, T tokens, N query heads, K kv heads, H head dim, D model dim, F feed-forward dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch import nn

from strata.engine.machine.rates import LinearKind
from strata.engine.model.decoder import Decoder, build_decoder
from strata.engine.model.rehearsal import rehearse_fused
from strata.engine.plan.shapes import ModelShape, to_llama_config
from strata.engine.sweep.hidden_store import MemoryStore, StoreShape, TimedStore
from strata.engine.sweep.lane_worker import LaneWorker
from strata.engine.sweep.readouts import Readouts
from strata.engine.tree.lanes import split_lanes
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree
from strata.kernels.elementwise.registry import choose_functions
from strata.kernels.prefix_attention.backend import AttentionRequest, AttentionSettings
from strata.kernels.prefix_attention.registry import choose_backend
from strata.kernels.prefix_attention.tile import PlannedTiles, Tile
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.timing import MIN_REPEATS, Stopwatch
from strata.scripts.bench.workloads.synthetic_questions import synthetic_questions, whole_rows

OPTION_TOKENS = 40
NUM_OPTIONS = 5
INITIALIZER_STD = 0.02
MEMBER = "base"


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """A lane to time: questions of equal prefixes, cut into micro-batches."""

    micro_batch_tokens: int
    prefix_tokens: int
    num_questions: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TimedRun:
    """Something to time, and what it computes.

    Attributes:
        run: computes it once.
        gemm_flops: of matrices.
        tokens: T.
        calls: micro-batches.
        scores: (query head, row, key) triples: of a lane the visible ones, of attention alone all computed.
    """

    run: Callable[[], object]
    gemm_flops: float = 0.0
    tokens: int = 0
    calls: int = 0
    scores: float = 0.0


@dataclass(kw_only=True, eq=False)
class TimedLayer:
    """One layer of random weights on a device.

    Args:
        shape: the layer's sizes; anything else of it is left out.
        dtype: of activations, and of weights that are not int8.
        linear: how linear layers are computed.
        device: where.
    """

    shape: ModelShape
    dtype: torch.dtype
    linear: LinearKind
    device: torch.device

    def __post_init__(self) -> None:
        self.shape = replace(self.shape, num_layers=1)
        self.decoder = build_decoder(to_llama_config(self.shape), self.dtype)
        functions = choose_functions(self.device, self.dtype)
        if functions is not None:
            rehearse_fused(self.decoder, functions, self.device, self.dtype)
        if self.linear == "int8":
            self.decoder.quantize_linears()
        self.decoder.prepare_rope(self.shape.max_position, self.device, self.dtype)
        self.weights = random_weights(self.decoder, self.dtype, self.device)

    @property
    def weight_bytes(self) -> int:
        """Of the layer, as it is computed with."""
        return sum(weight.nbytes for weight in self.weights.values())

    @property
    def flops_per_token(self) -> float:
        """Of the matrices."""
        return 2.0 * sum(rows * columns for _, (rows, columns) in self._matrices())

    def lane(self, case: LayerCase) -> TimedRun:
        """All micro-batches of a case's questions through the layer, as a sweep runs them."""
        tree = question_tree(case, self.shape.vocab_size)
        scored = np.array([tree.num_tokens - 1], np.int64)
        (lane,) = split_lanes(tree, scored, 1, case.micro_batch_tokens)
        width = self.shape.hidden_size
        shape = StoreShape(num_rows=tree.num_tokens, width=width, dtype=self.dtype, device=self.device)
        store = TimedStore(MemoryStore(shape, on_host=False))
        worker = LaneWorker(
            decoder=self.decoder,
            device=self.device,
            dtype=self.dtype,
            tree=tree,
            lane=lane,
            stores={MEMBER: store},
            norm={},
            readouts=Readouts(scored=scored, rows={}),
        )
        hidden = torch.randn(tree.num_tokens, self.shape.hidden_size, device=self.device).to(self.dtype)

        def run() -> None:
            store.write(0, hidden)
            worker.assign(0, self.weights)
            carried = None
            for index in range(len(lane.micro_batches)):
                _, carried = worker.run_layer(index, MEMBER, carried)

        return TimedRun(
            run=run,
            gemm_flops=self.flops_per_token * tree.num_tokens,
            tokens=tree.num_tokens,
            calls=len(lane.micro_batches),
            scores=self.shape.num_heads * float((tree.position_ids.astype(np.int64) + 1).sum()),
        )

    def matrices(self, rows: int) -> TimedRun:
        """The layer's matrices on M rows, one after another."""
        matrices = self._matrices()
        widths = {columns for _, (_, columns) in matrices}
        inputs = {width: torch.randn(1, rows, width, device=self.device).to(self.dtype) for width in widths}

        def run() -> None:
            self.decoder.assign_layer(0, self.weights)
            for module, (_, columns) in matrices:
                module(inputs[columns])

        return TimedRun(run=run, gemm_flops=self.flops_per_token * rows)

    def _matrices(self) -> list[tuple[nn.Module, tuple[int, int]]]:
        """The layer's linear modules with the shapes [N, K] of their weights."""
        layer, shapes = self.decoder.layers[0], self.decoder.layer_shapes(0)
        named = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2}
        return [(layer.get_submodule(path), (shape[0], shape[1])) for path, shape in named.items()]


def random_weights(decoder: Decoder, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Weights of a decoder's first layer, in the form that it computes with."""
    from strata.kernels.int8_linear.quantize import quantize_weight

    weights: dict[str, torch.Tensor] = {}
    for name, shape in decoder.layer_shapes(0).items():
        dense = (torch.randn(shape, device=device) * INITIALIZER_STD).to(dtype)
        if name in decoder.int8_names(0):
            codes = torch.empty(shape, dtype=torch.int8, device=device)
            scale = torch.empty(shape[0], dtype=torch.float32, device=device)
            quantize_weight(dense, out=(codes, scale))
            weights |= {name: codes, f"{name}_scale": scale}
        else:
            weights[name] = dense if len(shape) > 1 else torch.ones_like(dense)
    return weights


def question_tree(case: LayerCase, vocab_size: int) -> PrefixTree:
    """The prefix tree of a case's questions."""
    size = QuestionSize(
        prefix_tokens=case.prefix_tokens, option_tokens=OPTION_TOKENS, num_options=NUM_OPTIONS
    )
    questions = synthetic_questions(case.num_questions, size, vocab_size=vocab_size)
    return build_prefix_tree([row.astype(np.int32) for question in questions for row in whole_rows(question)])


def prefix_attention(shape: ModelShape, keys: int, dtype: torch.dtype, device: torch.device) -> TimedRun:
    """Causal prefix attention alone, of one layer of a shape over `keys` tokens."""
    num_heads, head_dim = shape.num_heads, shape.head_dim
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    backend = choose_backend(
        AttentionRequest(device_type=device.type, dtype=dtype, head_dim=head_dim, capability=capability)
    )
    rows = backend.cut.max_rows or keys
    tiles = PlannedTiles(
        Tile(
            rows=(start, min(start + rows, keys)),
            key_ranges=((0, min(start + rows, keys)),),
            num_keys=min(start + rows, keys),
            num_unmasked=start,
            causal=True,
            visible=None,
        )
        for start in range(0, keys, rows)
    )
    query = torch.randn(num_heads, keys, head_dim, device=device).to(dtype)
    key, value = torch.randn(2, shape.num_kv_heads, keys, head_dim, device=device).to(dtype)
    wanted = AttentionSettings(scaling=head_dim**-0.5)
    # SDPA skips what a causal mask hides; the blocked kernel computes whole tiles.
    skips = device.type == "cuda"
    scores = keys * (keys + 1) / 2 if skips else sum(tile.num_rows * tile.num_keys for tile in tiles)
    return TimedRun(
        run=lambda: backend.attend(query, key, value, tiles, wanted), scores=float(num_heads * scores)
    )


def median_in_turns(runs: Sequence[TimedRun], device: torch.device, at_least_s: float = 10.0) -> list[float]:
    """Median seconds of each run; all take turns, so that a busy moment of the machine meets all of them.

    Not the least: sweeps take minutes, at the speed that the machine usually has, and by the least of each
    part they were predicted a tenth too fast. The first round does not count; GPUs slow down as they get hot,
    so that of theirs the first half does not.

    Args:
        runs: what to time.
        device: whose queued work is waited for.
        at_least_s: how long to go on, three rounds or more.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode():
        while len(seconds[0]) <= MIN_REPEATS or sum(map(sum, seconds)) < at_least_s:
            for timed, found in zip(runs, seconds, strict=True):
                with Stopwatch(device) as watch:
                    timed.run()
                found.append(watch.seconds)
    return [median(found[len(found) // 2 if device.type == "cuda" else 1 :]) for found in seconds]
