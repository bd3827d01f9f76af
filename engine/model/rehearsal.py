"""A family is rehearsed before any work: a small model of it, by strata and by transformers, must agree.

Data flow: config -> a small config with a layer of every kind (`small_config`) -> transformers' own causal
language model with random weights, eager attention, float32: it runs two paths [L] that share a prefix, each
alone, and leaves every layer's input and output -> strata's decoder with the same weights runs both as one
prefix tree [T], in two micro-batches, layer after layer from the same inputs -> every output is compared:
embedding, each layer (all rows, keys alone, scored rows alone), final norm, logits. Takes a few tens of
milliseconds, once a config and process.
What differs is refused by name, so a family is right or not run. Knows no checkpoint.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedConfig

from strata.engine.model.attention import AttentionCall
from strata.engine.model.decoder import Decoder, assign_weights, build_decoder
from strata.engine.model.families import UnsupportedFamilyError, refuse_what_transformers_cannot
from strata.engine.model.final_logits import final_logits
from strata.engine.model.small_config import (
    VOCABULARY,
    LayerKind,
    first_of_every_kind,
    layer_kinds,
    shrink_config,
)
from strata.engine.model.transformers_recording import Recording, base_of, random_model, record
from strata.engine.tree.intervals import indexes
from strata.engine.tree.lanes import MicroBatch, split_lanes
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree
from strata.engine.tree.tiles import tile_finder
from strata.engine.types import InputError
from strata.engine.weights.first_layers import cut_settings
from strata.kernels.elementwise.functions import FusedFunctions
from strata.kernels.prefix_attention.tile import TileCut

TOLERANCE = 2e-4
"""Largest difference over the root mean square of what transformers computes, both in float32."""

NUM_SHARED, NUM_OWN = 7, 6
"""Tokens that both paths share, and that each has for itself; a window of the small model is shorter."""

MICRO_BATCH_TOKENS = 11

_rehearsed: dict[tuple[str, str | None], set[LayerKind]] = {}
"""The kinds of layers that were rehearsed, by all settings of a config that do not list layers, and by the
name of the fused functions."""


def rehearse(decoder: Decoder, functions: FusedFunctions | None = None) -> None:
    """Raises InputError unless strata computes what transformers computes for a decoder's family.

    Args:
        decoder: its config says what is rehearsed, its modules of which kinds the layers are.
        functions: by which modules compute, on the CPU, where they can; None for the family's own forwards.

    Raises:
        InputError: the family's layers, or what surrounds them, differ, or cannot be run.
    """
    key = (_settings_key(decoder.config), None if functions is None else functions.name)
    known = _rehearsed.setdefault(key, set())
    kinds = layer_kinds(decoder.layers, getattr(decoder.config, "layer_types", None))
    if known.issuperset(kinds):
        return
    with torch.inference_mode():
        theirs = _small_model(decoder)
        with refuse_what_transformers_cannot(decoder.config):
            _compare(theirs, functions)
    known.update(kinds)


def build_rehearsed(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """The modules of a checkpoint's base model, of a family that was rehearsed; see `build_decoder`.

    Raises:
        InputError: see `build_decoder` and `rehearse`.
    """
    decoder = build_decoder(config, dtype)
    rehearse(decoder)
    return decoder


def rehearse_fused(
    decoder: Decoder, functions: FusedFunctions, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Makes a decoder compute by fused functions if it is then what transformers computes; rehearses it.

    Args:
        decoder: not rehearsed yet.
        functions: of the device.
        device: where it will run.
        dtype: of activations and dense weights.

    Returns:
        Why nothing is fused; None where modules are.

    Raises:
        InputError: see `rehearse`; without fused functions, too.
    """
    try:
        rehearse(decoder, functions)
    except InputError as error:
        rehearse(decoder)
        return f"with fused functions ({functions.name}): {error}"
    decoder.fuse(functions, device, dtype)
    return None


def _settings_key(config: PreTrainedConfig) -> str:
    by_layer = cut_settings(vars(config), 1)
    settings = {name: value for name, value in config.to_dict().items() if name not in by_layer}
    return f"{type(config).__name__} {json.dumps(settings, sort_keys=True, default=str)}"


def _small_model(decoder: Decoder) -> nn.Module:
    """transformers' model of a small config: the narrowest that the family can be built with and run."""
    kinds = layer_kinds(decoder.layers, getattr(decoder.config, "layer_types", None))
    num_layers = first_of_every_kind(kinds)
    try:
        return _running_model(decoder.config, num_layers, is_narrow=True)
    except InputError:
        return _running_model(decoder.config, num_layers, is_narrow=False)


def _running_model(config: PreTrainedConfig, num_layers: int, *, is_narrow: bool) -> nn.Module:
    with refuse_what_transformers_cannot(config):
        model = random_model(shrink_config(config, num_layers, is_narrow=is_narrow))
        record(model, np.arange(3, 3 + NUM_SHARED))
    return model


def _compare(theirs: nn.Module, functions: FusedFunctions | None) -> None:
    """Raises UnsupportedFamilyError where strata's decoder differs from transformers' model."""
    config = copy.deepcopy(theirs.config)
    assert isinstance(config, PreTrainedConfig)
    ours = build_decoder(config)
    if functions is not None:
        ours.fuse(functions, torch.device("cpu"), torch.float32)
    _assign(ours, base_of(theirs))
    ours.prepare_rope(NUM_SHARED + NUM_OWN, torch.device("cpu"), torch.float32)
    generator = np.random.default_rng(0)
    tokens = generator.permutation(np.arange(3, min(config.vocab_size, VOCABULARY))).astype(np.int32)
    shared, rest = tokens[:NUM_SHARED], tokens[NUM_SHARED:]
    paths = [np.concatenate([shared, rest[start : start + NUM_OWN]]) for start in (0, NUM_OWN)]
    recordings = [record(theirs, path) for path in paths]
    tree = build_prefix_tree(paths)
    scored = np.asarray([path[-1][1] - 1 for path in tree.sequence_paths])
    lane = split_lanes(tree, np.sort(scored), 1, MICRO_BATCH_TOKENS)[0]
    rows = _Rows(tree=tree, recordings=recordings)
    _compare_embedding(ours, rows)
    for layer in range(config.num_hidden_layers):
        _compare_layer(ours, layer, rows, lane.micro_batches)
    _compare_ends(ours, theirs, rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """The recordings of both paths as the rows [T] of one tree."""

    tree: PrefixTree
    recordings: list[Recording]

    def merge(self, pick: Callable[[Recording], torch.Tensor], what: str) -> torch.Tensor:
        """[T, ...] of what each path recorded [L, ...]; shared tokens must be the same on both."""
        parts = [pick(recording) for recording in self.recordings]
        merged = parts[0].new_empty(self.tree.num_tokens, *parts[0].shape[1:])
        for sequence, part in enumerate(parts):
            merged[self.streams_of(sequence)] = part
        for sequence, part in enumerate(parts):
            told = f"{what}, of tokens before the one that differs,"
            _require_same(told, merged[self.streams_of(sequence)], part)
        return merged

    def streams_of(self, sequence: int) -> np.ndarray:
        """[L] stream index of each token of a path."""
        return indexes(self.tree.sequence_paths[sequence])


def _compare_embedding(ours: Decoder, rows: _Rows) -> None:
    embedding = ours.base.get_submodule("embed_tokens").get_parameter("weight")
    embedded = ours.embed(embedding, torch.from_numpy(rows.tree.token_ids).long())
    _require_same("what enters layer 0", embedded, rows.merge(lambda each: each.inputs[0], "the embedding"))


def _compare_layer(ours: Decoder, layer: int, rows: _Rows, batches: tuple[MicroBatch, ...]) -> None:
    """Runs a layer from the recorded inputs, micro-batch after micro-batch, in each mode of attention."""
    entering_TD = rows.merge(lambda each: each.inputs[layer], f"layer {layer - 1}")
    expected_TD = rows.merge(lambda each: each.outputs[layer], f"layer {layer}")
    carried: torch.Tensor | None = None
    for batch in batches:
        streams = indexes(batch.rows)
        hidden_TD, positions = entering_TD[streams], torch.from_numpy(rows.tree.position_ids[streams]).long()
        tiles_of = tile_finder(rows.tree, batch, scored=False)
        call = AttentionCall(tiles_of=tiles_of, carried=carried)
        _require_same(f"layer {layer}", _run(ours, layer, hidden_TD, positions, call), expected_TD[streams])
        assert call.key_values is not None
        keys = AttentionCall(tiles_of=tiles_of, carried=carried, mode="keys")
        key_values = ours.run_layer_keys(layer, hidden_TD, positions, keys)
        _require_same(f"the keys and values of layer {layer}", key_values, call.key_values)
        if len(batch.scored_rows):
            scored = torch.from_numpy(batch.scored_rows)
            read = AttentionCall(
                tiles_of=tile_finder(rows.tree, batch, scored=True),
                carried=None,
                mode="scored",
                key_values=key_values,
            )
            output = _run(ours, layer, hidden_TD[scored], positions[scored], read)
            _require_same(f"the scored rows of layer {layer}", output, expected_TD[streams][scored])
        carried = key_values[:, :, indexes(batch.kept)]


def _run(
    ours: Decoder, layer: int, hidden_TD: torch.Tensor, positions: torch.Tensor, call: AttentionCall
) -> torch.Tensor:
    """Raises UnsupportedFamilyError unless the layer attends exactly once."""
    calls = 0
    tiles_of = call.tiles_of

    def counted(cut: TileCut, window: int | None):
        nonlocal calls
        calls += 1
        return tiles_of(cut, window)

    call.tiles_of = counted
    output = ours.run_layer(layer, hidden_TD, positions, call)
    if calls != 1:
        raise UnsupportedFamilyError(f"layer {layer} attends {calls} times; expected once")
    return output


def _compare_ends(ours: Decoder, theirs: nn.Module, rows: _Rows) -> None:
    last_TD = rows.merge(lambda each: each.outputs[-1], "the last layer")
    norm = dict(ours.base.get_submodule("norm").named_parameters())
    readouts_TD = ours.normalize(norm, last_TD)
    _require_same(
        "the final norm", readouts_TD, rows.merge(lambda each: _present(each.normalized), "the final norm")
    )
    output = theirs.get_output_embeddings() if rows.recordings[0].logits is not None else None  # type: ignore[operator]
    if output is None:
        return
    logits_TV = linear(readouts_TD, output.weight, output.bias)
    logits_TV = final_logits(ours.config)(logits_TV)
    _require_same("the logits", logits_TV, rows.merge(lambda each: _present(each.logits), "the logits"))


def _assign(ours: Decoder, base: nn.Module) -> None:
    """Gives the decoder the weights that a sweep would give it, and no others."""
    for part in ("embed_tokens", "norm"):
        assign_weights(ours.base.get_submodule(part), dict(base.get_submodule(part).named_parameters()))
    for index, layer in enumerate(base.get_submodule("layers").children()):
        weights = layer.state_dict()
        ours.assign_layer(index, {name: weights[name] for name in ours.layer_shapes(index)})


def _require_same(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    if ours.shape != theirs.shape:
        raise UnsupportedFamilyError(
            f"{what} has shape {list(ours.shape)}, that of transformers {list(theirs.shape)}"
        )
    error = float((ours - theirs).abs().max() / theirs.square().mean().sqrt().clamp_min(1e-12))
    if not error <= TOLERANCE:
        raise UnsupportedFamilyError(
            f"rehearsed on random weights, {what} differs from transformers' own by {error:.1%}"
        )


def _present(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor
