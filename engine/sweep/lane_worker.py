"""Computes one lane, one layer at a time, on one device. Knows nothing of files or of other lanes.

Of a lane and a layer: hidden states [T, D] of each micro-batch come from the hidden store, go through the
layer with the carried keys and values [2, K, C, H], and go back. In the last layer only the scored rows are
computed beyond their keys and values, and their final-norm hidden states are the readouts.
A micro-batch whose result overflows float16 is computed again in float32, and stays in float32 for the rest
of the sweep. Readouts that are not finite end the run, whatever the dtype.
A micro-batch for which memory runs out is cut in two, which the rest of the sweep keeps, and its layer is
repeated: its hidden states are replaced last of all, so that until then nothing has happened.
Shape suffixes: T rows of a micro-batch, S scored rows, D model dim, K kv heads, C keys, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from strata.engine.memory_errors import is_out_of_memory
from strata.engine.model.attention import AttentionCall
from strata.engine.model.decoder import Decoder
from strata.engine.sweep.hidden_store import TimedStore
from strata.engine.tree.halving import cut_micro_batch
from strata.engine.tree.intervals import indexes
from strata.engine.tree.lanes import Lane, MicroBatch
from strata.engine.tree.prefix_tree import PrefixTree
from strata.engine.tree.tiles import tile_finder

KeySpace = tuple[torch.Tensor, torch.Tensor | None]
"""Keys and values [2, K, C, H] that a micro-batch attends to, and those of them that the next one carries."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Readouts:
    """Where workers leave what is read out: `rows` [S, D] a member, for `scored` [S] stream indexes."""

    scored: np.ndarray
    rows: Mapping[str, torch.Tensor]

    def put(self, member: str, streams: np.ndarray, readouts: torch.Tensor) -> None:
        """Stores readouts [s, D] of stream indexes [s], on the host."""
        places = torch.from_numpy(np.searchsorted(self.scored, streams))
        rows = self.rows[member]
        rows[places] = readouts.to(rows.dtype).cpu()


Tap = Callable[[int, str, np.ndarray, torch.Tensor], None]
"""Told of every layer, member, stream indexes [s] and what a head would read there [s, D], on the device."""


class ReadoutsNotFiniteError(FloatingPointError):
    """Readouts that hold NaN or inf, and the stream indexes [s] that they belong to."""

    def __init__(self, streams: np.ndarray) -> None:
        super().__init__("the last layer's readouts are not finite: weights or activations hold NaN or inf")
        self.streams = streams


LEAST_TOKENS = 8
"""Micro-batches are not cut smaller: what they take is nothing beside weights and keys."""


class TiledBatch:
    """A micro-batch with its tiles."""

    def __init__(self, tree: PrefixTree, batch: MicroBatch) -> None:
        self.batch = batch
        self.tiles = tile_finder(tree, batch, scored=False)
        self.scored_tiles = tile_finder(tree, batch, scored=True)


@dataclass(kw_only=True, eq=False)
class LaneWorker:
    """A device with its own modules, the lane it computes, and the tiles of the lane's micro-batches.

    `stores` hold each member's hidden states; `norm` are the final norm's weights, None where readouts are
    taken before it. `promoted` maps the first rows of micro-batches that overflowed to float32 hidden states;
    `overflows` lists (layer, first row). `tiled` are the lane's micro-batches, or the smaller ones that took
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
    promoted: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    overflows: list[tuple[int, int]] = field(default_factory=list)
    halvings: list[tuple[int, int]] = field(default_factory=list)
    _layer: int = 0
    _weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tiled = [TiledBatch(self.tree, batch) for batch in self.lane.micro_batches]

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
        self.decoder.activations.forget()
        following = self.tiled[index + 1].batch.carried if index + 1 < len(self.tiled) else ()
        parts = cut_micro_batch(self.tree, batch, (batch.num_rows + 1) // 2, following)
        self.tiled[index : index + 1] = [TiledBatch(self.tree, part) for part in parts]
        for member in self.stores:
            promoted = self.promoted.pop((member, batch.first_row), None)
            if promoted is not None:
                for part, rows in zip(parts, promoted.split([part.num_rows for part in parts]), strict=True):
                    self.promoted[member, part.first_row] = rows
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
        is_last = self._layer == len(self.decoder.layers) - 1
        return (self.run_last_layer if is_last else self.run_layer)(index, member, carried)

    def run_layer(self, index: int, member: str, carried: torch.Tensor | None) -> KeySpace:
        """All rows through all of the layer, store to store; see `run`."""
        tiled = self.tiled[index]
        hidden_TD, position_ids = self._load(tiled.batch, member)
        call = AttentionCall(tiles_of=tiled.tiles, carried=carried)
        output_TD = self._compute(
            tiled.batch,
            hidden_TD,
            lambda states: self.decoder.run_layer(self._layer, states, position_ids, call),
        )
        assert call.key_values is not None
        kept = self.keep_carried(index, call.key_values)
        if output_TD.dtype == self.dtype:
            self.stores[member].write(tiled.batch.first_row, output_TD)
        else:
            self.promoted[member, tiled.batch.first_row] = output_TD
        self._tell(tiled.batch, member, output_TD)
        return call.key_values, kept

    def run_last_layer(self, index: int, member: str, carried: torch.Tensor | None) -> KeySpace:
        """Keys and values of all rows, the rest for scored ones, whose readouts it leaves; see `run`."""
        layer, tiled = self._layer, self.tiled[index]
        batch = tiled.batch
        hidden_TD, position_ids = self._load(batch, member)
        keys = AttentionCall(tiles_of=tiled.tiles, carried=carried, mode="keys")
        key_values_2KCH = self._compute(
            batch, hidden_TD, lambda states: self.decoder.run_layer_keys(layer, states, position_ids, keys)
        )
        kept = self.keep_carried(index, key_values_2KCH)
        if not len(batch.scored_rows):
            return key_values_2KCH, kept
        scored = torch.from_numpy(batch.scored_rows).to(self.device)
        call = AttentionCall(
            tiles_of=tiled.scored_tiles, carried=None, mode="scored", key_values=key_values_2KCH
        )

        def read_out(states: torch.Tensor) -> torch.Tensor:
            return self._normalize(self.decoder.run_layer(layer, states, position_ids[scored], call))

        readouts_SD = self._compute(batch, hidden_TD[scored], read_out)
        streams = indexes(batch.rows)[batch.scored_rows]
        if not is_finite(readouts_SD):
            is_odd = ~torch.isfinite(readouts_SD).all(dim=1).cpu().numpy()
            raise ReadoutsNotFiniteError(streams[is_odd])
        self.readouts.put(member, streams, readouts_SD)
        if self.tap is not None:
            self.tap(layer, member, streams, readouts_SD)
        return key_values_2KCH, kept

    def keep_carried(self, index: int, key_values_2KCH: torch.Tensor) -> torch.Tensor | None:
        """What the next micro-batch carries of a key space."""
        ranges = self.tiled[index].batch.kept
        if not ranges:
            return None
        return torch.cat([key_values_2KCH[:, :, start:end] for start, end in ranges], dim=2)

    def _tell(self, batch: MicroBatch, member: str, hidden_TD: torch.Tensor) -> None:
        """Tells the tap, if there is one, what a head would read after this layer."""
        if self.tap is not None and len(batch.scored_rows):
            scored = torch.from_numpy(batch.scored_rows).to(self.device)
            streams = indexes(batch.rows)[batch.scored_rows]
            self.tap(self._layer, member, streams, self._normalize(hidden_TD[scored]))

    def _normalize(self, states_SD: torch.Tensor) -> torch.Tensor:
        """The final norm, where readouts are taken after it."""
        if self.norm is None:
            return states_SD
        norm = {name: weight.to(states_SD) for name, weight in self.norm.items()}
        return self.decoder.normalize(norm, states_SD)

    def _load(self, batch: MicroBatch, member: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [T, D] and position ids [T] of a micro-batch, on the device."""
        hidden_TD = self.promoted.get((member, batch.first_row))
        if hidden_TD is None:
            hidden_TD = self.stores[member].read(batch.first_row, batch.num_rows)
            if self.tree.tree_starts is not None:
                # A view is aligned as its place in the store happens to be, and products depend on that.
                hidden_TD = hidden_TD.clone()
        position_ids = self.tree.position_ids[indexes(batch.rows)].astype(np.int64)
        return hidden_TD, torch.from_numpy(position_ids).to(self.device)

    def _compute(
        self, batch: MicroBatch, hidden_TD: torch.Tensor, attempt: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """`attempt(hidden)`; in float32 when the hidden states are, or when the result overflows float16.

        The other dtypes have float32's range: there a result that is not finite shows in the readouts.

        Raises:
            FloatingPointError: not finite even in float32.
        """
        layer = self._layer
        if hidden_TD.dtype == self.dtype:
            result = attempt(hidden_TD)
            if self.dtype != torch.float16 or is_finite(result):
                return result
            if (layer, batch.first_row) not in self.overflows:
                self.overflows.append((layer, batch.first_row))
        widened = {
            name: weight.float() if weight.is_floating_point() else weight
            for name, weight in self._weights.items()
        }
        self.decoder.assign_layer(layer, widened)
        try:
            result = attempt(hidden_TD.float())
        finally:
            self.decoder.assign_layer(layer, self._weights)
        if not is_finite(result):
            raise FloatingPointError(
                f"layer {layer}: hidden states are not finite, not even in float32: weights hold NaN or inf"
            )
        return result


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every element is finite; one pass, no temporary of the tensor's size."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32)))
