"""Files that are whole or absent, text as UTF-8, values as JSON. Knows nothing of what is in them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path

from strata.engine.types import InputError


class OutputError(OSError):
    """An output file could not be written (full disk, permission); the message is one line naming it."""

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path`, then gives it its name; folders are made as needed.

    On any failure, an interrupt included, the temporary file is removed and what `path` held before is
    untouched.

    Args:
        path: The file to leave.
        write: Called once with the temporary path, which it has to create.

    Raises:
        OutputError: If the system refused (full disk, permission, a folder in the way); `errno` is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise OutputError(error.errno, reason, str(path)) from error
    finally:
        # After success there is nothing to remove; a folder that refuses has had its reason told above.
        with contextlib.suppress(OSError):
            temporary.unlink()


def flush_to_disk(path: Path) -> None:
    """Waits until the file's bytes are on the disk; a full disk may only be noticed here."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Leaves a file of this content, whole or not at all; folders are made as needed.

    Raises:
        OutputError: the system refuses.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write)


def write_text_atomically(path: Path, text: str) -> None:
    """Leaves a UTF-8 file of this text, line ends as they are, whole or not at all.

    Raises:
        OutputError: the system refuses.
        UnicodeEncodeError: the text holds a lone surrogate.
    """
    write_bytes_atomically(path, text.encode("utf-8"))


def identify_files(paths: Iterable[Path]) -> list[str]:
    """What tells whether files are still those they were: resolved path, size in bytes, time of change."""
    found = [(path.resolve(), path.stat()) for path in paths]
    return [f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in found]


def read_utf8(path: Path) -> str:
    """Reads a text file as UTF-8, without its byte order mark.

    Raises:
        InputError: unreadable, or not UTF-8 (names the line and the byte).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return decode_utf8(data, path)


def decode_utf8(data: bytes, path: Path) -> str:
    """The text of bytes that were read from a file, without its byte order mark.

    Raises:
        InputError: not UTF-8 (names the line and the byte).
    """
    num_bom_bytes = len(_UTF8_BOM) if data.startswith(_UTF8_BOM) else 0
    try:
        return data[num_bom_bytes:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + num_bom_bytes
        line = data.count(b"\n", 0, offset) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{data[offset]:02x} at offset {offset} is not UTF-8, as was expected"
        ) from error


_UTF8_BOM = b"\xef\xbb\xbf"


def to_json(value: object) -> object:
    """The value as plain JSON types: what has no JSON form, such as a Path or a dtype, becomes its text.

    NaN and infinities become None; dataclasses and mappings dicts with text keys; sets sorted lists; NumPy
    and torch scalars and arrays numbers and lists.
    """
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return to_json(value.value)
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((to_json(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return str(value)
