"""Question files as people have them: plain, gzip or zip, UTF-8 or UTF-16. Knows nothing of rows."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from strata.engine.files import decode_utf8
from strata.engine.types import InputError

MAX_BYTES = 1 << 30
"""Of a file's content, unpacked."""
FREE_BYTES, MAX_RATIO = 64 << 20, 200
"""A packed file may unpack to the former, and beyond it to so many times its size."""

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceFile:
    """A file's content: `data` as unpacked, None for a plain file; `suffix` tells its format."""

    path: Path
    suffix: str
    data: bytes | None = None
    notes: tuple[str, ...] = ()

    def read_text(self) -> tuple[str, tuple[str, ...]]:
        """The text, without a byte order mark, and what is to be said of how it was read.

        Raises:
            InputError: unreadable, too large, or neither UTF-8 nor UTF-16 with a byte order mark.
        """
        data = self.data
        if data is None:
            _check_size(self.path, self.path.stat().st_size, MAX_BYTES)
            try:
                data = self.path.read_bytes()
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
        if not data.startswith(_UTF16_MARKS):
            return decode_utf8(data, self.path), self.notes
        try:
            return data.decode("utf-16"), (*self.notes, "UTF-16")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: begins as UTF-16 and is not ({error.reason})") from error


def open_source(path: Path) -> SourceFile:
    """Unpacks a file where its suffix says so.

    Raises:
        InputError: a broken archive, one of several files, or one that unpacks to too much.
    """
    suffix = path.suffix.lower()
    if suffix not in (".gz", ".zip"):
        return SourceFile(path=path, suffix=suffix)
    limit = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * path.stat().st_size))
    try:
        return _open_gzip(path, limit) if suffix == ".gz" else _open_zip(path, limit)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a complete {suffix[1:]} file ({reason})") from error


def _open_gzip(path: Path, limit: int) -> SourceFile:
    with gzip.open(path) as file:
        data = _read_bounded(path, file, limit)
    return SourceFile(path=path, suffix=path.with_suffix("").suffix.lower(), data=data, notes=("gzip",))


def _open_zip(path: Path, limit: int) -> SourceFile:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
        if len(members) != 1:
            found = ", ".join(info.filename for info in members[:3]) or "none"
            raise InputError(f"{path}: holds {len(members)} files ({found}); expected one question file")
        if members[0].flag_bits & 1:
            raise InputError(f"{path}: {members[0].filename} is encrypted; expected one that is not")
        with archive.open(members[0]) as file:
            data = _read_bounded(path, file, limit)
    name = members[0].filename
    return SourceFile(
        path=path, suffix=PurePosixPath(name).suffix.lower(), data=data, notes=(f"zip of {name}",)
    )


def _is_hidden(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith(".")


def _read_bounded(path: Path, file: gzip.GzipFile | IO[bytes], limit: int) -> bytes:
    data = file.read(limit + 1)
    _check_size(path, len(data), limit)
    return data


def _check_size(path: Path, num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise InputError(f"{path}: more than {limit >> 20:,} MiB of content; expected at most that")
