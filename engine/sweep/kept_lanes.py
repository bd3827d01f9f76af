"""A lane's hidden states and public keys as tensors of a file, and back. Knows not when or why they are kept.

Names in the file: hidden/MEMBER/0 [T, D] in the order of the lane's rows; float32/MEMBER/ROW [t, D], those of
micro-batches that overflowed, from the lane's row on; public/MEMBER/LAYER [2, K, P, H]. MEMBER is its index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        for (owner, first_row), rows in worker.promoted.items():
            if owner == member:
                writer.add(f"float32/{index}/{first_row}", [rows])


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
    members, promoted = list(worker.stores), dict[tuple[str, int], torch.Tensor]()
    for piece, parts in read_pieces(path, pieces):
        kind, member, place = piece.name.split("/")
        name = members[int(member)]
        if kind == "hidden":
            _write_rows(worker, name, parts)
        elif kind == "float32":
            promoted[name, int(place)] = read_whole(parts)
        else:
            public.restore(name, int(place), worker.lane, read_whole(parts).to(worker.device))
    _promote(worker, promoted)


def _write_rows(worker: LaneWorker, member: str, parts: Iterator[torch.Tensor]) -> None:
    first = 0
    for part in parts:
        worker.stores[member].write(first, part.to(worker.device))
        first += len(part)


def _promote(worker: LaneWorker, kept: Mapping[tuple[str, int], torch.Tensor]) -> None:
    """Makes float32 the micro-batches with rows that are; they may have been cut otherwise when kept."""
    for (member, first_row), rows in kept.items():
        for tiled in worker.tiled:
            batch = tiled.batch
            low = max(first_row, batch.first_row)
            high = min(first_row + len(rows), batch.first_row + batch.num_rows)
            if low >= high:
                continue
            place = (member, batch.first_row)
            if place not in worker.promoted:
                stored = worker.stores[member].read(batch.first_row, batch.num_rows)
                worker.promoted[place] = stored.to(torch.float32, copy=True)
            part = rows[low - first_row : high - first_row].to(worker.device)
            worker.promoted[place][low - batch.first_row : high - batch.first_row] = part
