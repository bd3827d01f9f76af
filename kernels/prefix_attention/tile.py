"""The unit of work of prefix attention: some query rows and everything they may see.

A tile's keys are gathered from ranges of the micro-batch's key space. The first `num_unmasked` of them are
seen by every row; for the rest `visible` says which row sees which key. Knows nothing of trees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """Query rows with a common set of keys.

    Attributes:
        rows: (start, end) of query rows.
        key_ranges: (start, end) ranges of the key space, concatenated in this order.
        num_keys: total length of the key ranges.
        num_unmasked: leading keys that every row sees.
        causal: the masked keys are the rows themselves, row i seeing the first i + 1 of them.
        visible: bits of a bool array [rows, masked keys] (np.packbits over the last axis), None when `causal`
            or when nothing is masked.
    """

    rows: tuple[int, int]
    key_ranges: tuple[tuple[int, int], ...]
    num_keys: int
    num_unmasked: int
    causal: bool
    visible: np.ndarray | None

    @property
    def num_rows(self) -> int:
        """Query rows."""
        return self.rows[1] - self.rows[0]

    @property
    def num_masked(self) -> int:
        """Trailing keys that not every row sees."""
        return self.num_keys - self.num_unmasked

    def visible_mask(self, device: torch.device) -> torch.Tensor:
        """Bool tensor [rows, masked keys], True where the row sees the key."""
        if self.causal:
            return torch.ones(self.num_rows, self.num_masked, dtype=torch.bool, device=device).tril()
        assert self.visible is not None, "a tile with masked keys is causal or carries its mask"
        bits = np.unpackbits(self.visible, axis=-1, count=self.num_masked)
        return torch.from_numpy(bits).to(device).view(torch.bool)


def gather_keys(states: torch.Tensor, tile: Tile) -> torch.Tensor:
    """The tile's part [K, num_keys, H] of keys or values [K, key space, H]; a view when it is one range."""
    parts = [states[:, start:end] for start, end in tile.key_ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
