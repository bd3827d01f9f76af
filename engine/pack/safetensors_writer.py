"""Writes a safetensors file tensor by tensor, in any order, whole or not at all. Knows nothing of models.

Dtypes and shapes are known before any value: the header comes first, then every tensor goes to its own place,
so that the file needs the memory of one tensor. Wider dtypes lie first, as in the files of the safetensors
library, so that every tensor is aligned to its dtype. Format: see `safetensors_file`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from strata.engine.files import OutputError
from strata.engine.weights.checksums import start_digest
from strata.engine.weights.safetensors_file import TORCH_DTYPES

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
HEADER_ALIGNMENT = 8
PIECE_BYTES = 8 << 20
"""Bytes that are digested and written at a time."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """What the header says of a tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, eq=False)
class FileLayout:
    """A whole file but for its values.

    Attributes:
        header: the first bytes of the file.
        specs: tensors by name.
        offsets: where each tensor begins, from the start of the file.
        num_bytes: of the file.
    """

    header: bytes
    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]
    num_bytes: int


def plan_layout(specs: Iterable[TensorSpec]) -> FileLayout:
    """Gives every tensor its place: wide dtypes first, otherwise in the order given."""
    ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for spec in ordered:
        assert spec.name not in begins, spec.name
        begins[spec.name] = end
        end += spec.num_bytes
        entries[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begins[spec.name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return FileLayout(
        header=header,
        specs={spec.name: spec for spec in ordered},
        offsets={name: len(header) + begin for name, begin in begins.items()},
        num_bytes=len(header) + end,
    )


class SafetensorsWriter:
    """Context manager: the file gets its name when the block ends well, and leaves nothing otherwise.

    Attributes:
        digests: hexadecimal SHA-256 of each tensor written, by name.
    """

    def __init__(self, path: Path, layout: FileLayout) -> None:
        """Nothing happens before the block begins."""
        self.digests: dict[str, str] = {}
        self._path, self._layout = path, layout
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._descriptor = -1

    def __enter__(self) -> SafetensorsWriter:
        try:
            with _named_refusals(self._path):
                self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                self._write_at(0, memoryview(self._layout.header))
        except BaseException:
            self._abandon()
            raise
        return self

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Puts one tensor in its place.

        Args:
            name: a tensor of the layout that was not written yet.
            tensor: on the CPU, in the layout's dtype and shape.

        Raises:
            OutputError: the system refuses.
        """
        spec = self._layout.specs[name]
        assert name not in self.digests, f"{name} was written before"
        assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), f"{name}: {tensor.shape}"
        view = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        digest = start_digest()
        with _named_refusals(self._path):
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                digest.update(piece)
                self._write_at(self._layout.offsets[name] + start, piece)
        self.digests[name] = digest.hexdigest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            missing = self._layout.specs.keys() - self.digests.keys()
            assert not missing, f"never written: {min(missing)}"
            with _named_refusals(self._path):
                os.fsync(self._descriptor)
                self._close()
                os.replace(self._temporary, self._path)
        except BaseException:
            self._abandon()
            raise

    def _write_at(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], offset + done)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _abandon(self) -> None:
        # What failed is told by the error under way; a half-written file is of no use to anybody.
        with suppress(OSError):
            if self._descriptor >= 0:
                self._close()
        with suppress(OSError):
            self._temporary.unlink()


@contextmanager
def _named_refusals(path: Path) -> Iterator[None]:
    """Makes what the system refuses name the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(error.errno, error.strerror or str(error), str(path)) from error
