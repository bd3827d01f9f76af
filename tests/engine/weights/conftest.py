"""A file, and the cache in front of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.engine.weights.byte_sources import FileSource
from strata.engine.weights.read_cache import CachedSource

from .cache_reads import CONTENT


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "model-00001-of-00001.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def make_cache(tmp_path):
    """`make_cache(**settings)`: another run's view of the same folder."""

    def make(**settings) -> CachedSource:
        return CachedSource(FileSource(), tmp_path / "cache", **({"reserve_bytes": 0} | settings))

    return make
