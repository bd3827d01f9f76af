"""Computes one lane, one layer at a time, on one device. Knows nothing of files or of other lanes.

Of a lane and a layer: hidden states [T, D] of each micro-batch come from the hidden store, go through the
layer with the carried keys and values [2, K, C, H], and go back. In the last layer only the scored rows are
computed beyond their keys and values, and their final-norm hidden states are the readouts.
A micro-batch whose result overflows float16 is computed again in float32, and stays in float32 for the rest
of the sweep. Readouts that are not finite end the run, whatever the dtype.
Shape suffixes: T rows of a micro-batch, S scored rows, D model dim, K kv heads, C keys, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from strata.engine.model.attention import AttentionCall
from strata.engine.model.decoder import Decoder
from strata.engine.sweep.hidden_store import HiddenStore
from strata.engine.tree.intervals import indexes
from strata.engine.tree.lanes import Lane
from strata.engine.tree.prefix_tree import PrefixTree
from strata.engine.tree.tiles import tile_finder


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


@dataclass(kw_only=True, eq=False)
class LaneWorker:
    """A device with its own modules, the lane it computes, and the tiles of the lane's micro-batches.

    `stores` hold each member's hidden states; `norm` are the final norm's weights, None where readouts are
    taken before it. `promoted` maps micro-batches that overflowed to their float32 hidden states; `overflows`
    lists (layer, micro-batch). `tap` is told of the scored rows after every layer.
    """

    decoder: Decoder
    device: torch.device
    dtype: torch.dtype
    tree: PrefixTree
    lane: Lane
    stores: Mapping[str, HiddenStore]
    norm: Mapping[str, torch.Tensor] | None
    readouts: Readouts
    tap: Tap | None = None
    promoted: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    overflows: list[tuple[int, int]] = field(default_factory=list)
    _layer: int = 0
    _weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        batches = self.lane.micro_batches
        self._tiles = [tile_finder(self.tree, batch, scored=False) for batch in batches]
        self._scored_tiles = [tile_finder(self.tree, batch, scored=True) for batch in batches]

    def embed(self, table: torch.Tensor, row_of_token: np.ndarray) -> None:
        """Fills the hidden stores with embeddings, from a table [U, D] and each token id's row in it [V]."""
        on_device = table.to(self.device, self.dtype)
        for store in self.stores.values():
            for batch in self.lane.micro_batches:
                token_ids = self.tree.token_ids[indexes(batch.rows)]
                rows = torch.from_numpy(row_of_token[token_ids]).to(self.device)
                store.write(batch.first_row, self.decoder.embed(on_device, rows))

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

    def run(self, index: int, member: str, carried: torch.Tensor | None) -> torch.Tensor:
        """A micro-batch of a member through the layer; in the last layer it leaves readouts.

        Args:
            index: which micro-batch of the lane.
            member: whose hidden states.
            carried: keys and values [2, K, C, H] that the micro-batch before left, None for none.

        Returns:
            The micro-batch's key space [2, K, C, H].
        """
        is_last = self._layer == len(self.decoder.layers) - 1
        return (self.run_last_layer if is_last else self.run_layer)(index, member, carried)

    def run_layer(self, index: int, member: str, carried: torch.Tensor | None) -> torch.Tensor:
        """All rows through all of the layer, store to store; see `run`."""
        hidden_TD, position_ids = self._load(index, member)
        call = AttentionCall(tiles_of=self._tiles[index], carried=carried)
        output_TD = self._compute(
            index, hidden_TD, lambda states: self.decoder.run_layer(self._layer, states, position_ids, call)
        )
        if output_TD.dtype == self.dtype:
            self.stores[member].write(self.lane.micro_batches[index].first_row, output_TD)
        else:
            self.promoted[member, index] = output_TD
        self._tell(index, member, output_TD)
        assert call.key_values is not None
        return call.key_values

    def run_last_layer(self, index: int, member: str, carried: torch.Tensor | None) -> torch.Tensor:
        """Keys and values of all rows, the rest for scored ones, whose readouts it leaves; see `run`."""
        hidden_TD, position_ids = self._load(index, member)
        layer, batch = self._layer, self.lane.micro_batches[index]
        keys = AttentionCall(tiles_of=self._tiles[index], carried=carried, mode="keys")
        key_values_2KCH = self._compute(
            index, hidden_TD, lambda states: self.decoder.run_layer_keys(layer, states, position_ids, keys)
        )
        if not len(batch.scored_rows):
            return key_values_2KCH
        scored = torch.from_numpy(batch.scored_rows).to(self.device)
        tiles_of = self._scored_tiles[index]
        call = AttentionCall(tiles_of=tiles_of, carried=None, mode="scored", key_values=key_values_2KCH)

        def read_out(states: torch.Tensor) -> torch.Tensor:
            return self._normalize(self.decoder.run_layer(layer, states, position_ids[scored], call))

        readouts_SD = self._compute(index, hidden_TD[scored], read_out)
        if not is_finite(readouts_SD):
            raise FloatingPointError(
                "the last layer's readouts are not finite: weights or activations hold NaN or inf"
            )
        streams = indexes(batch.rows)[batch.scored_rows]
        self.readouts.put(member, streams, readouts_SD)
        if self.tap is not None:
            self.tap(layer, member, streams, readouts_SD)
        return key_values_2KCH

    def keep_carried(self, index: int, key_values_2KCH: torch.Tensor) -> torch.Tensor | None:
        """What the next micro-batch carries of a key space."""
        ranges = self.lane.micro_batches[index].kept
        if not ranges:
            return None
        return torch.cat([key_values_2KCH[:, :, start:end] for start, end in ranges], dim=2)

    def _tell(self, index: int, member: str, hidden_TD: torch.Tensor) -> None:
        """Tells the tap, if there is one, what a head would read after this layer."""
        batch = self.lane.micro_batches[index]
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

    def _load(self, index: int, member: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [T, D] and position ids [T] of a micro-batch, on the device."""
        batch = self.lane.micro_batches[index]
        hidden_TD = self.promoted.get((member, index))
        if hidden_TD is None:
            hidden_TD = self.stores[member].read(batch.first_row, batch.num_rows)
        position_ids = self.tree.position_ids[indexes(batch.rows)].astype(np.int64)
        return hidden_TD, torch.from_numpy(position_ids).to(self.device)

    def _compute(
        self, index: int, hidden_TD: torch.Tensor, attempt: Callable[[torch.Tensor], torch.Tensor]
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
            if (layer, index) not in self.overflows:
                self.overflows.append((layer, index))
        widened = {
            name: weight.float() if weight.is_floating_point() else weight
            for name, weight in self._weights.items()
        }
        self.decoder.assign_layer(layer, widened)
        result = attempt(hidden_TD.float())
        self.decoder.assign_layer(layer, self._weights)
        if not is_finite(result):
            raise FloatingPointError(f"layer {layer}: hidden states are not finite, not even in float32")
        return result


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every element is finite; one pass, no temporary of the tensor's size."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32)))
