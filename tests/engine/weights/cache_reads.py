"""Reads through a cache, checked byte by byte, and what the cache says of them. Knows no test."""

from __future__ import annotations

import logging
import random
from collections import namedtuple
from pathlib import Path

from strata.engine.weights.read_cache import CachedSource

CONTENT = random.Random(11).randbytes(600_000)

SIZE = 100_000

Usage = namedtuple("Usage", "total used free")


def read(source: CachedSource, file: Path, offset: int, size: int = SIZE, content: bytes = CONTENT) -> None:
    buffer = bytearray(b"\xaa" * size)
    source.read_at(file, offset, memoryview(buffer))
    assert buffer == content[offset : offset + size]


def counts(source: CachedSource) -> tuple[int, int, int]:
    return source.num_bytes_from_cache, source.num_bytes_from_source, source.num_bytes_kept


def extents(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*"))


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
