"""A lane's hidden states and public keys as tensors of a file, and back. Knows not when or why they are kept.

Names in the file: hidden/MEMBER/0 [T, D] in the order of the lane's rows; factors/MEMBER/ROW [t, 1] of those
beyond float16's range, from a row on; public/MEMBER/LAYER [2, K, P, H]. MEMBER is its index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from strata.engine.sweep.kept_pieces import PART_ROWS, Piece, PieceWriter, read_pieces, read_whole
from strata.engine.sweep.lane_worker import LaneWorker
from strata.engine.sweep.shared_keys import PublicKeys


def write_lane(writer: PieceWriter, worker: LaneWorker) -> None:
    """Writes each member's hidden states."""
    for index, (member, store) in enumerate(worker.stores.items()):
        num_rows = worker.lane.num_tokens
        starts = range(0, num_rows, PART_ROWS)
        writer.add(f"hidden/{index}/0", (store.read(at, min(PART_ROWS, num_rows - at)) for at in starts))
        for (owner, first_row), factors in worker.factors.items():
            if owner == member:
                writer.add(f"factors/{index}/{first_row}", [factors])


def write_public(writer: PieceWriter, worker: LaneWorker, public: PublicKeys, layer: int) -> None:
    """Writes what the lane has published of the layers so far, if it is the one that publishes."""
    if not worker.lane.publishes:
        return
    for index, member in enumerate(worker.stores):
        for earlier in range(layer + 1):
            keys = public.find(member, earlier)
            if keys is not None:
                writer.add(f"public/{index}/{earlier}", [keys])


def fill_lane(path: Path, pieces: Sequence[Piece], worker: LaneWorker, public: PublicKeys) -> None:
    """Puts into a lane's stores, and among the public keys, what a file holds of it."""
    members = list(worker.stores)
    for piece, parts in read_pieces(path, pieces):
        kind, member, place = piece.name.split("/")
        name = members[int(member)]
        if kind == "hidden":
            _write_rows(worker, name, parts)
        elif kind == "factors":
            _put_factors(worker, name, int(place), read_whole(parts).to(worker.device))
        else:
            public.restore(name, int(place), worker.lane, read_whole(parts))


def _write_rows(worker: LaneWorker, member: str, parts: Iterator[torch.Tensor]) -> None:
    first = 0
    for part in parts:
        worker.stores[member].write(first, part.to(worker.device))
        first += len(part)


def _put_factors(worker: LaneWorker, member: str, first_row: int, factors: torch.Tensor) -> None:
    """Gives micro-batches the factors [t, 1] of rows; they may be cut otherwise than when these were kept."""
    for tiled in worker.tiled:
        first = tiled.batch.first_row
        low, high = max(first_row, first), min(first_row + len(factors), first + tiled.batch.num_rows)
        if low < high:
            ones = torch.ones(tiled.batch.num_rows, 1, device=worker.device)
            own = worker.factors.setdefault((member, first), ones)
            own[low - first : high - first] = factors[low - first_row : high - first_row]
