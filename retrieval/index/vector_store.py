"""The vectors of an index folder, made by one encoder: a file a chunk shard, memory-mapped.

    dense/<encoder>/encoder.json      how they were made, of which chunks, and how they are stored
    dense/<encoder>/NNNNN.npy         [N, D] float16, or int8 with NNNNN.scale.npy [N] float32
    dense/<encoder>/int8/NNNNN.npy    codes of the float16 vectors for a first pass, with NNNNN.scale.npy
    dense/<encoder>/binary/NNNNN.npy  the same as sign bits, [N, ceil(D / 8)] uint8

Knows no encoder and no search. Legend: N rows of a shard, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from strata.engine.json_files import check_schema
from strata.engine.types import InputError
from strata.retrieval.index.manifest import (
    CHUNKS_PART,
    Manifest,
    check_part,
    check_version,
    read_manifest,
    read_own_json,
)
from strata.retrieval.index.schemas import EncoderSchema
from strata.retrieval.index.vector_shard import DTYPES, VectorKind, VectorShard, num_columns
from strata.retrieval.index_config import Codes
from strata.retrieval.library_errors import library_errors

VECTORS_VERSION = 1
ENCODER_FILE = "encoder.json"
DENSE_FOLDER = "dense"
UNIT_NORM_BOUND = 1.002
"""No float16 copy of a vector of length 1 is longer (up to 2^20 dimensions)."""


class VectorStore:
    """Reads one encoder's vectors, or the codes made of them.

    Args:
        index: an index folder.
        name: the encoder's folder name.
        codes: read the first-pass codes of this kind instead of the vectors.
        digests: see `check_part`.

    Raises:
        InputError: the part is missing, of another version or other chunks, or a file of it is broken.
    """

    def __init__(
        self, index: Path, name: str, codes: Codes | None = None, *, digests: bool | None = None
    ) -> None:
        manifest = read_manifest(index)
        if part_name(name) not in manifest.parts:
            raise InputError(f"{index}: no vectors of encoder {name!r}; expected one of: {_listed(index)}")
        if codes and part_name(name, codes) not in manifest.parts:
            raise InputError(
                f"{index}: encoder {name!r} has no {codes} codes; expected them to be made first"
            )
        check_part(index, manifest, part_name(name, codes), digests=digests)
        self.description = read_description(index, name, manifest)
        self.dim = int(self.description["dim"])
        self.folder = vector_folder(index, name, codes)
        self.shard_rows = tuple(int(rows) for rows in self.description["shard_rows"])
        self._kind: VectorKind = codes or self.description["stored"]

    def __len__(self) -> int:
        return sum(self.shard_rows)

    @property
    def num_shards(self) -> int:
        """Number of shards; `shard_rows` holds the rows of each."""
        return len(self.shard_rows)

    def first_rows(self) -> np.ndarray:
        """The first row of every shard, [shards] int64."""
        return np.array([0, *accumulate(self.shard_rows)][:-1], dtype=np.int64)

    def open_shard(self, number: int) -> VectorShard:
        """A shard, memory-mapped: nothing is read yet.

        Raises:
            InputError: a file of it is missing, cut short or of another shape.
        """
        path = shard_path(self.folder, number)
        num_rows = self.shard_rows[number]
        scales = None
        if self._kind == "int8":
            scales = map_array(scale_path(path), (num_rows,), np.float32)
        is_unit = self._kind == "float16" and self.description["normalised"]
        return VectorShard(
            first_row=int(self.first_rows()[number]),
            codes=map_array(path, (num_rows, num_columns(self._kind, self.dim)), DTYPES[self._kind]),
            dim=self.dim,
            scales=scales,
            max_norm=UNIT_NORM_BOUND if is_unit else None,
        )

    def open_shards(self, numbers: Iterable[int] | None = None) -> Iterator[VectorShard]:
        """Yields these shards, or all, opening each when it is asked for."""
        for number in range(self.num_shards) if numbers is None else numbers:
            yield self.open_shard(number)


def list_encoders(index: Path) -> list[str]:
    """Names of the encoders whose vectors an index has."""
    names = [part.split("/") for part in read_manifest(index).parts]
    return sorted(name[1] for name in names if name[0] == DENSE_FOLDER and len(name) == 2)


def _listed(index: Path) -> str:
    return ", ".join(list_encoders(index)) or "none (strata index --encoder makes them)"


def part_name(name: str, codes: Codes | None = None) -> str:
    """The name of a part of the manifest: `dense/<encoder>`, `dense/<encoder>/binary`."""
    return "/".join((DENSE_FOLDER, name, *([codes] if codes else [])))


def vector_folder(index: Path, name: str, codes: Codes | None = None) -> Path:
    """Where the files of a part are."""
    return index / part_name(name, codes)


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard's vectors or codes."""
    return folder / f"{number:05d}.npy"


def scale_path(path: Path) -> Path:
    """The file of the scales that belong to a file of int8 codes."""
    return path.with_name(f"{path.stem}.scale.npy")


def map_array(path: Path, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Maps a .npy file copy-on-write; raises InputError when it is not of this shape and dtype."""

    def tell(reason: str) -> InputError:
        return InputError(f"{path}: cannot be read as a shard of vectors ({reason}); build it again")

    with library_errors(tell):
        array = np.load(path, mmap_mode="c" if np.prod(shape) else None, allow_pickle=False)
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise InputError(
            f"{path}: {array.dtype} {list(array.shape)}; expected {np.dtype(dtype)} {list(shape)}"
        )
    return array


def read_description(index: Path, name: str, manifest: Manifest) -> Mapping[str, Any]:
    """What encoder.json says; refuses another version, and vectors of other chunks than the index holds."""
    path = vector_folder(index, name) / ENCODER_FILE
    content = read_own_json(path, expected="what `strata index --encoder` writes")
    check_version(path, content, VECTORS_VERSION, "encode the index again")
    found = check_schema(EncoderSchema, content, str(path))
    if found.chunks_sha256 != chunks_digest(manifest):
        raise InputError(f"{path}: made of other chunks than the index holds; encode the index again")
    if sum(found.shard_rows) != manifest.num_chunks:
        raise InputError(
            f"{path}: shard_rows: {sum(found.shard_rows)} in all; expected the index's {manifest.num_chunks}"
        )
    return content


def chunks_digest(manifest: Manifest) -> str:
    """SHA-256 over the checksums of all chunk shards: the chunks that vectors belong to."""
    files = manifest.parts[CHUNKS_PART]["files"]
    entries = [[file, files[file]["sha256"]] for file in sorted(files)]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()
