"""Computes one lane, one layer at a time, on one device. Knows nothing of files or of other lanes.

Of a lane and a layer: hidden states [T, D] of each micro-batch come from the hidden store, go through the
layer with the carried keys and values [2, K, C, H], and go back. In the last layer only the scored rows are
computed beyond their keys and values, and their final-norm hidden states are the readouts.
A micro-batch whose result overflows float16 is computed again in float32 (see `overflow`). Readouts that are
not finite end the run, whatever the dtype.
A micro-batch for which memory runs out is cut in two, which the rest of the sweep keeps, and its layer is
repeated: its hidden states are replaced last of all, so that until then nothing has happened.
Shape suffixes: T rows of a micro-batch, S scored rows, D model dim, K kv heads, C keys, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from strata.engine.memory_errors import is_out_of_memory
from strata.engine.model.attention import AttentionCall
from strata.engine.model.decoder import Decoder
from strata.engine.sweep.hidden_store import TimedStore
from strata.engine.sweep.overflow import (
    Attempt,
    Found,
    in_float32,
    is_all_finite,
    is_finite,
    narrow,
    rows_in_float16,
    why_not_finite,
)
from strata.engine.sweep.readouts import Readouts, ReadoutsNotFiniteError, Tap
from strata.engine.tree.halving import cut_micro_batch
from strata.engine.tree.intervals import indexes
from strata.engine.tree.lanes import Lane, MicroBatch
from strata.engine.tree.prefix_tree import PrefixTree
from strata.engine.tree.tiles import tile_finder

KeySpace = tuple[torch.Tensor, torch.Tensor | None]
"""Keys and values [2, K, C, H] that a micro-batch attends to, and those of them that the next one carries."""

LEAST_TOKENS = 8
"""Micro-batches are not cut smaller: what they take is nothing beside weights and keys."""

FLOAT32_BLOCKS = 8
"""Blocks of rows in which a micro-batch is computed in float32. An eighth of the intermediate tensors, twice
as wide, three of the model's width and a matrix take what the plan allows for all of it in float16."""


class TiledBatch:
    """A micro-batch with its tiles, and what every layer needs of it on the device, uploaded once."""

    def __init__(self, tree: PrefixTree, batch: MicroBatch, device: torch.device) -> None:
        self.batch = batch
        self.tiles = tile_finder(tree, batch, scored=False)
        self.scored_tiles = tile_finder(tree, batch, scored=True)
        streams = indexes(batch.rows)
        self.position_ids = torch.from_numpy(tree.position_ids[streams].astype(np.int64)).to(device)
        self.scored_rows = torch.from_numpy(batch.scored_rows).to(device)
        self.scored_streams = streams[batch.scored_rows]


@dataclass(kw_only=True, eq=False)
class LaneWorker:
    """A device with its own modules, the lane it computes, and the tiles of the lane's micro-batches.

    `stores` hold each member's hidden states; `norm` are the final norm's weights, None where readouts are
    taken before it. `factors` [T, 1] are what the stored states of a member's micro-batch, named by its first
    row, have to be multiplied by, where they would overflow float16. `overflows` lists (layer, first row) of
    micro-batches that did, each once. `tiled` are the lane's micro-batches, or the smaller ones that took
    their place, and `halvings` lists (layer, tokens) of those for which memory ran out: tokens after they
    were cut. `tap` is told of the scored rows after every layer.
    """

    decoder: Decoder
    device: torch.device
    dtype: torch.dtype
    tree: PrefixTree
    lane: Lane
    stores: Mapping[str, TimedStore]
    norm: Mapping[str, torch.Tensor] | None
    readouts: Readouts
    tap: Tap | None = None
    factors: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    overflows: list[tuple[int, int]] = field(default_factory=list)
    halvings: list[tuple[int, int]] = field(default_factory=list)
    _layer: int = 0
    _weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tiled = [TiledBatch(self.tree, batch, self.device) for batch in self.lane.micro_batches]
        self._norm_in: dict[torch.dtype, dict[str, torch.Tensor]] = {}

    def embed(self, table: torch.Tensor, row_of_token: np.ndarray) -> None:
        """Fills the hidden stores with embeddings, from a table [U, D] and each token id's row in it [V]."""
        on_device = table.to(self.device, self.dtype)
        for store in self.stores.values():
            for batch in self.lane.micro_batches:
                token_ids = self.tree.token_ids[indexes(batch.rows)]
                rows = torch.from_numpy(row_of_token[token_ids]).to(self.device)
                store.write(batch.first_row, self.decoder.embed(on_device, rows))

    def halve(self, index: int, error: BaseException) -> None:
        """Cuts a micro-batch in two, because of an error that says that memory ran out.

        Raises:
            BaseException: the error, if it says something else or the micro-batch is too small.
        """
        batch = self.tiled[index].batch
        # A tree of a forest stays whole: cut elsewhere, its products would differ in their last bits.
        is_whole = self.tree.tree_starts is not None
        if not is_out_of_memory(error) or batch.num_rows < 2 * LEAST_TOKENS or is_whole:
            raise error
        self.decoder.activations.undo()
        following = self.tiled[index + 1].batch.carried if index + 1 < len(self.tiled) else ()
        parts = cut_micro_batch(self.tree, batch, (batch.num_rows + 1) // 2, following)
        self.tiled[index : index + 1] = [TiledBatch(self.tree, part, self.device) for part in parts]
        for member in self.stores:
            factors = self.factors.pop((member, batch.first_row), None)
            if factors is not None:
                for part, rows in zip(parts, factors.split([part.num_rows for part in parts]), strict=True):
                    self.factors[member, part.first_row] = rows
        self.halvings.append((self._layer, parts[0].num_rows))

    def assign(self, layer: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Puts a layer's weights into the modules; the micro-batches that follow go through this layer."""
        self._layer, self._weights = layer, weights
        self.decoder.assign_layer(layer, weights)

    def release(self) -> None:
        """Lets go of the layer's weights."""
        self._weights = {}
        self.decoder.drop_layer(self._layer)

    def close(self) -> None:
        """Gives the hidden stores back."""
        for store in self.stores.values():
            store.close()

    @property
    def store_s(self) -> float:
        """Seconds that reading and writing hidden states has taken so far."""
        return sum(store.seconds for store in self.stores.values())

    def run(self, index: int, member: str, carried: torch.Tensor | None) -> KeySpace:
        """A micro-batch of a member through the layer; in the last layer it leaves readouts.

        Args:
            index: which of the lane's micro-batches.
            member: whose hidden states.
            carried: keys and values [2, K, C, H] that the micro-batch before left, None for none.

        Returns:
            The micro-batch's key space [2, K, C, H], and what of it the next one carries, None for nothing.
        """
        # A tree of a forest is computed as if there were no other: nothing is known from those before it.
        if self.tree.tree_starts is None:
            self.decoder.activations.begin(is_first=index == 0)
        is_last = self._layer == len(self.decoder.layers) - 1
        return (self.run_last_layer if is_last else self.run_layer)(index, member, carried)

    def run_layer(self, index: int, member: str, carried: torch.Tensor | None) -> KeySpace:
        """All rows through all of the layer, store to store; see `run`."""
        layer, tiled = self._layer, self.tiled[index]
        call = AttentionCall(tiles_of=tiled.tiles, carried=carried)
        output_TD, key_values_2KCH = self._compute(
            tiled.batch,
            self._load(tiled.batch, member),
            lambda states: (self.decoder.run_layer(layer, states, tiled.position_ids, call), call.key_values),
            lambda states: self._run_blocks(tiled, states, carried),
        )
        assert output_TD is not None
        assert key_values_2KCH is not None
        kept = self.keep_carried(index, key_values_2KCH)
        self._store(tiled.batch, member, output_TD)
        if self.tap is not None and len(tiled.scored_streams):
            self.tap(layer, member, tiled.scored_streams, self._normalize(output_TD[tiled.scored_rows]))
        return key_values_2KCH, kept

    def run_last_layer(self, index: int, member: str, carried: torch.Tensor | None) -> KeySpace:
        """Keys and values of all rows, the rest for scored ones, whose readouts it leaves; see `run`."""
        layer, tiled = self._layer, self.tiled[index]
        hidden_TD = self._load(tiled.batch, member)

        def find_keys(states: torch.Tensor) -> tuple[None, torch.Tensor]:
            keys = AttentionCall(tiles_of=tiled.tiles, carried=carried, mode="keys")
            return None, self.decoder.run_layer_keys(layer, states, tiled.position_ids, keys)

        def read_out(states: torch.Tensor) -> tuple[torch.Tensor, None]:
            call = AttentionCall(
                tiles_of=tiled.scored_tiles, carried=None, mode="scored", key_values=key_values_2KCH
            )
            positions = tiled.position_ids[tiled.scored_rows]
            return self._normalize(self.decoder.run_layer(layer, states, positions, call)), None

        _, key_values_2KCH = self._compute(tiled.batch, hidden_TD, find_keys, find_keys)
        assert key_values_2KCH is not None
        kept = self.keep_carried(index, key_values_2KCH)
        if not len(tiled.scored_streams):
            return key_values_2KCH, kept
        readouts_SD, _ = self._compute(tiled.batch, hidden_TD[tiled.scored_rows], read_out, read_out)
        assert readouts_SD is not None
        if self.dtype != torch.float16 and not is_finite(readouts_SD):
            is_odd = ~torch.isfinite(readouts_SD).all(dim=1).cpu().numpy()
            raise ReadoutsNotFiniteError(tiled.scored_streams[is_odd])
        self.readouts.put(member, tiled.scored_streams, readouts_SD)
        if self.tap is not None:
            self.tap(layer, member, tiled.scored_streams, readouts_SD)
        return key_values_2KCH, kept

    def keep_carried(self, index: int, key_values_2KCH: torch.Tensor) -> torch.Tensor | None:
        """What the next micro-batch carries of a key space."""
        ranges = self.tiled[index].batch.kept
        if not ranges:
            return None
        return torch.cat([key_values_2KCH[:, :, start:end] for start, end in ranges], dim=2)

    def _normalize(self, states_SD: torch.Tensor) -> torch.Tensor:
        """The final norm, where readouts are taken after it."""
        if self.norm is None:
            return states_SD
        if states_SD.dtype not in self._norm_in:
            self._norm_in[states_SD.dtype] = {
                name: weight.to(states_SD) for name, weight in self.norm.items()
            }
        return self.decoder.normalize(self._norm_in[states_SD.dtype], states_SD)

    def _load(self, batch: MicroBatch, member: str) -> torch.Tensor:
        """Hidden states [T, D] of a micro-batch, in float32 where float16 does not hold them."""
        hidden_TD = self.stores[member].read(batch.first_row, batch.num_rows)
        factors_T1 = self.factors.get((member, batch.first_row))
        if factors_T1 is not None:
            return hidden_TD.float() * factors_T1
        if self.tree.tree_starts is not None:
            # A view is aligned as its place in the store happens to be, and products depend on that.
            hidden_TD = hidden_TD.clone()
        return hidden_TD

    def _store(self, batch: MicroBatch, member: str, hidden_TD: torch.Tensor) -> None:
        """Puts a micro-batch's hidden states where the next layer finds them."""
        factors_T1 = None
        if hidden_TD.dtype != self.dtype:
            hidden_TD, factors_T1 = rows_in_float16(hidden_TD)
        self.stores[member].write(batch.first_row, hidden_TD)
        self.factors.pop((member, batch.first_row), None)
        if factors_T1 is not None:
            self.factors[member, batch.first_row] = factors_T1

    def _compute(self, batch: MicroBatch, hidden_TD: torch.Tensor, attempt: Attempt, again: Attempt) -> Found:
        """`attempt(hidden)`; `again(hidden)` in float32 when they are, or when a result overflows float16.

        The other dtypes have float32's range: there a result that is not finite shows in the readouts.

        Raises:
            FloatingPointError: not finite even in float32.
        """
        layer = self._layer
        if hidden_TD.dtype == self.dtype:
            found = attempt(hidden_TD)
            if self.dtype != torch.float16 or is_all_finite(found):
                return found
            del found  # its memory is wanted
            self.decoder.activations.undo()
            if all(first_row != batch.first_row for _, first_row in self.overflows):
                self.overflows.append((layer, batch.first_row))
        with in_float32(self.decoder, layer, self._weights):
            states, key_values = again(hidden_TD.float())
        if not is_all_finite((states, key_values)):
            raise FloatingPointError(f"layer {layer}: {why_not_finite(self._weights)}")
        return states, None if key_values is None else narrow(key_values, self.dtype)

    def _run_blocks(self, tiled: TiledBatch, hidden_TD: torch.Tensor, carried: torch.Tensor | None) -> Found:
        """The layer over blocks of rows, so that float32 takes no more memory than float16 would at once."""
        layer, positions = self._layer, tiled.position_ids
        keys = AttentionCall(tiles_of=tiled.tiles, carried=carried, mode="keys")
        key_values_2KCH = self.decoder.run_layer_keys(layer, hidden_TD, positions, keys)
        output_TD = torch.empty_like(hidden_TD)
        size = max(LEAST_TOKENS, -(-len(hidden_TD) // FLOAT32_BLOCKS))
        for first in range(0, len(hidden_TD), size):
            rows = np.arange(first, min(first + size, len(hidden_TD)))
            part = replace(tiled.batch, scored_rows=rows)
            call = AttentionCall(
                tiles_of=tile_finder(self.tree, part, scored=True),
                carried=None,
                mode="scored",
                key_values=key_values_2KCH,
            )
            block = slice(first, first + len(rows))
            output_TD[block] = self.decoder.run_layer(layer, hidden_TD[block], positions[block], call)
        return output_TD, key_values_2KCH
