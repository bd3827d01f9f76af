"""Writes one shard of vectors block by block; what is written survives an interruption.

The arrays grow under `.partial` names, a small file says how many rows of them count, and when all are there
the arrays get their names, the vectors last. Knows nothing of encoders. Legend: N rows of a shard.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from strata.engine.files import OutputError, flush_to_disk
from strata.engine.json_files import check_schema
from strata.engine.types import InputError
from strata.retrieval.index.manifest import read_own_json, write_json
from strata.retrieval.index.schemas import ProgressSchema
from strata.retrieval.index.vector_shard import DTYPES, VectorKind, num_columns
from strata.retrieval.index.vector_store import map_array, scale_path
from strata.retrieval.library_errors import library_errors


class VectorWriter:
    """Appends rows to a shard that may be begun or finished already.

    Args:
        path: the shard's .npy file.
        num_rows: N of the whole.
        dim: dimensions of a vector.
        kind: float16, int8 (with scales) or binary.

    Attributes:
        kind: as given.
        num_written: rows that are safely there.
        is_finished: the shard has its name, and is of this shape.
    """

    def __init__(self, path: Path, num_rows: int, dim: int, kind: VectorKind) -> None:
        self.kind: VectorKind = kind
        self._path = path
        self._shape = (num_rows, num_columns(kind, dim))
        self._dtype = DTYPES[kind]
        self._has_scales = kind == "int8"
        self._progress = path.with_name(f"{path.stem}.progress.json")
        self.is_finished = path.exists()
        self.num_written = num_rows if self.is_finished else 0
        if self.is_finished:
            self._check_finished()
        else:
            self._open()

    def _check_finished(self) -> None:
        map_array(self._path, self._shape, self._dtype)
        if self._has_scales:
            map_array(scale_path(self._path), self._shape[:1], np.float32)
        self._progress.unlink(missing_ok=True)

    def _open(self) -> None:
        """Goes on with the partial arrays, or begins them."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partials = [_partial(self._path)] + ([_partial(scale_path(self._path))] if self._has_scales else [])
        if self._progress.exists() and all(path.exists() for path in partials):
            content = read_own_json(self._progress, expected="the progress of an interrupted encoding")
            self.num_written = self._checked_progress(content)
        mode = "r+" if self.num_written else "w+"
        self._codes = _map(partials[0], mode, self._shape, self._dtype)
        self._scales = _map(partials[1], mode, self._shape[:1], np.float32) if self._has_scales else None

    def _checked_progress(self, content: object) -> int:
        num_rows = check_schema(ProgressSchema, content, str(self._progress)).num_rows
        if num_rows > self._shape[0]:
            raise InputError(
                f"{self._progress}: num_rows: {num_rows}; expected {self._shape[0]} at most: remove the file"
            )
        return num_rows

    def append(self, codes: np.ndarray, scales: np.ndarray | None) -> None:
        """Adds n rows of codes and, for int8, their scales [n]; they are on the disk when it returns."""
        stop = self.num_written + len(codes)
        self._codes[self.num_written : stop] = codes
        self._codes.flush()
        if self._scales is not None:
            assert scales is not None
            self._scales[self.num_written : stop] = scales
            self._scales.flush()
        self.num_written = stop
        write_json(self._progress, {"num_rows": stop})

    def finish(self) -> None:
        """Gives the files their names."""
        assert self.num_written == self._shape[0], "rows are missing"
        self._codes.flush()
        del self._codes
        if self._scales is not None:
            self._scales.flush()
            self._scales = None
            _rename(scale_path(self._path))
        _rename(self._path)
        self._progress.unlink(missing_ok=True)
        self.is_finished = True


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _map(path: Path, mode: str, shape: tuple[int, ...], dtype: type) -> np.memmap:
    if mode == "w+":
        codes = np.lib.format.open_memmap(path, mode=mode, dtype=dtype, shape=shape)
        _take_room(path)
        return codes

    def tell(reason: str) -> InputError:
        return InputError(f"{path}: cannot be read ({reason}); remove it to begin this shard again")

    with library_errors(tell):
        found = np.lib.format.open_memmap(path, mode=mode)
    if found.shape != shape or found.dtype != dtype:
        raise InputError(
            f"{path}: {found.dtype} {list(found.shape)}; expected {np.dtype(dtype)} {list(shape)}"
        )
    return found


def _take_room(path: Path) -> None:
    """Has the disk give what the file will fill: a full one would end the process at a later write.

    Raises:
        OutputError: there is no room; the file is removed.
    """
    try:
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink()
        raise OutputError(error.errno, error.strerror or str(error), str(path)) from error


def _rename(path: Path) -> None:
    flush_to_disk(_partial(path))
    _partial(path).replace(path)
