"""The unit of work of prefix attention: some query rows and everything they may see.

A tile's keys are gathered from ranges of the micro-batch's key space. The first `num_unmasked` of them are
seen by every row; for the rest `visible` says which row sees which key, unless a rule does. Knows nothing of
trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

Made = TypeVar("Made")

Ranges = tuple[tuple[int, int], ...]
"""(start, end) ranges of the key space."""


@dataclass(frozen=True, kw_only=True)
class TileCut:
    """How a backend wants rows cut into tiles.

    Attributes:
        max_rows: the most query rows of a tile, None for any number.
        joins: whether short branches may share a tile, which then needs a mask. Otherwise a tile is rows that
            follow one another on one path: a sequence, causal from the bottom right.
        joined_rows: the most rows of a tile that branches share; a branch with as many has its own. None for
            `max_rows`.
        joined_keys: the most keys of a tile that branches share, None for any number.
        tile_scores: scores of a head that take as long as a tile more: so many are computed in vain for each
            tile that joining saves.
    """

    max_rows: int | None
    joins: bool
    joined_rows: int | None = None
    joined_keys: int | None = None
    tile_scores: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """Query rows with a common set of keys.

    Attributes:
        rows: (start, end) of query rows.
        key_ranges: (start, end) ranges of the key space, concatenated in this order.
        num_keys: total length of the key ranges.
        num_unmasked: leading keys that every row sees.
        causal: the last keys are the rows themselves, row i seeing the first i + 1 of them, and all before.
        visible: bits of a bool array [rows, masked keys] (np.packbits over the last axis), None when `causal`
            or when nothing is masked.
        window: of a causal tile whose keys are in order of position, each one behind the one before: a row
            sees no more than this many, itself included. None for all of them.
    """

    rows: tuple[int, int]
    key_ranges: Ranges
    num_keys: int
    num_unmasked: int
    causal: bool
    visible: np.ndarray | None
    window: int | None = None
    _bits: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_rows(self) -> int:
        """Query rows."""
        return self.rows[1] - self.rows[0]

    @property
    def num_masked(self) -> int:
        """Trailing keys that not every row sees."""
        return self.num_keys - self.num_unmasked

    @property
    def is_sequence(self) -> bool:
        """Whether no mask is stored for it: each row sees the keys before its own, and its own."""
        return self.causal or (self.num_rows == 1 and self.num_masked == 0)

    @property
    def num_before(self) -> int:
        """Of a sequence: keys before the rows' own, which every row sees."""
        return self.num_keys - self.num_rows

    @property
    def ranges_before(self) -> Ranges:
        """Of a sequence: where these are."""
        return _slice_ranges(self.key_ranges, 0, self.num_before)

    @property
    def own_ranges(self) -> Ranges:
        """Of a sequence: where the rows' own keys are."""
        return _slice_ranges(self.key_ranges, self.num_before, self.num_keys)

    def visible_mask(self, device: torch.device) -> torch.Tensor:
        """Bool tensor [rows, masked keys], True where the row sees the key; made on the device."""
        if self.causal:
            before = self.num_masked - self.num_rows
            seen = torch.ones(self.num_rows, self.num_masked, dtype=torch.bool, device=device).tril(before)
            return seen if self.window is None else seen.triu(before - self.window + 1)
        assert self.visible is not None, "a tile with masked keys is causal or carries its mask"
        if device.type == "cpu":
            bits = np.unpackbits(self.visible, axis=-1, count=self.num_masked)
            return torch.from_numpy(bits).view(torch.bool)
        if device not in self._bits:
            self._bits[device] = torch.from_numpy(self.visible).to(device)
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
        unpacked = self._bits[device][..., None].bitwise_right_shift(shifts).bitwise_and(1)
        return unpacked.flatten(1)[:, : self.num_masked].to(torch.bool)


def _slice_ranges(ranges: Ranges, first: int, last: int) -> Ranges:
    """The keys [first, last) of those that some ranges hold."""
    found, passed = [], 0
    for start, end in ranges:
        low, high = max(first - passed, 0), min(last - passed, end - start)
        if low < high:
            found.append((start + low, start + high))
        passed += end - start
    return tuple(found)


class PlannedTiles(tuple[Tile, ...]):
    """Tiles of a micro-batch, and what backends have made of them: made once, kept as long as the tiles."""

    def made(self, key: str, make: Callable[[], Made]) -> Made:
        """What `make` gave for this key the first time."""
        if key not in self.__dict__:
            self.__dict__[key] = make()
        found: Made = self.__dict__[key]
        return found


def made_once(tiles: Sequence[Tile], key: str, make: Callable[[], Made]) -> Made:
    """What `make` gives for some tiles; of `PlannedTiles` what it gave the first time."""
    return tiles.made(key, make) if isinstance(tiles, PlannedTiles) else make()


def gather_keys(states: torch.Tensor, tile: Tile) -> torch.Tensor:
    """The tile's part [K, num_keys, H] of keys or values [K, key space, H]; a view when it is one range."""
    parts = [states[:, start:end] for start, end in tile.key_ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
