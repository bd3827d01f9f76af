"""Lines of files that may be compressed (.gz, .bz2, .xz), within limits that no real corpus comes near.

One line is in memory at a time. Knows nothing of what a line holds.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from strata.engine.types import InputError
from strata.retrieval.library_errors import one_line

OPENERS: Mapping[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

MAX_LINE_BYTES = 64 << 20
"""The longest line of Wikipedia's dumps, wikitext and links included, takes a tenth of it."""

MAX_RATIO = 300
"""Bytes out of a byte in. Text compresses to a tenth or a twentieth, a file of zeros to a thousandth."""

MIN_EXPANDED_BYTES = 8 << 20
"""A smaller file may expand as it likes; beyond, the ratio is looked at each time as much has come out."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from one, line) of a file, decompressed by its suffix, without a byte order mark.

    Raises:
        InputError: unreadable, damaged, a line of more than MAX_LINE_BYTES, or a file that expands without
            end.
    """
    opener = OPENERS.get(path.suffix.lower())
    try:
        with path.open("rb") as stored:
            if opener is None:
                yield from _bounded_lines(path, stored)
            else:
                with opener(stored) as expanded:
                    lines = _bounded_lines(path, io.BufferedReader(expanded))
                    yield from _watch_ratio(path, stored, lines)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be decompressed ({one_line(error)})") from None
    except OSError as error:
        # bz2 raises it without a number for bytes that are not its own.
        verb = "decompressed" if error.errno is None else "read"
        raise InputError(f"{path}: cannot be {verb} ({error.strerror or one_line(error)})") from None


def _bounded_lines(path: Path, file: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{path}: line {number}: more than {MAX_LINE_BYTES} bytes; expected shorter lines, as of one "
                "document each"
            )
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _watch_ratio(
    path: Path, stored: io.BufferedReader, lines: Iterator[tuple[int, bytes]]
) -> Iterator[tuple[int, bytes]]:
    num_bytes, next_look = 0, MIN_EXPANDED_BYTES
    for number, line in lines:
        num_bytes += len(line)
        if num_bytes >= next_look:
            if num_bytes > MAX_RATIO * stored.tell():
                raise InputError(
                    f"{path}: line {number}: {stored.tell()} bytes became {num_bytes}; expected text, which "
                    f"no compression makes {MAX_RATIO} times smaller (if it is meant so, give it expanded)"
                )
            next_look += MIN_EXPANDED_BYTES
        yield number, line
