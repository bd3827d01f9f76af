"""Sources of bytes: every stack of them gives the file's own bytes, and a throttled one keeps its rate."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.engine.types import InputError
from strata.engine.weights import byte_sources
from strata.engine.weights.byte_sources import ByteSource, FileSource, ThrottledSource, TruncatedFileError
from strata.engine.weights.read_cache import CachedSource

CONTENT = random.Random(7).randbytes(300_000)

LAYERS: dict[str, Callable[[ByteSource, Path], ByteSource]] = {
    "throttled": lambda inner, folder: ThrottledSource(inner, 2e9),
    "throttled in odd pieces": lambda inner, folder: ThrottledSource(inner, 64 * 70_001),
    "cached": lambda inner, folder: CachedSource(inner, folder, reserve_bytes=0),
    "cached with little room": lambda inner, folder: CachedSource(inner, folder, 0, max_bytes=150_000),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bytes") / "weights.bin"
    path.write_bytes(CONTENT)
    return path


class FakeClock:
    """time.monotonic and time.sleep without waiting; every sleep takes `oversleep_s` longer than asked."""

    def __init__(self, oversleep_s: float = 0.0) -> None:
        self.now, self.oversleep_s = 100.0, oversleep_s

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.oversleep_s


class RecordingSource:
    """Gives zeros, and notes when and how many."""

    def __init__(self, clock: FakeClock, read_s: float = 0.0) -> None:
        self.clock, self.read_s, self.reads = clock, read_s, []

    def read_at(self, file, offset, view, *, keep=True):
        self.clock.now += self.read_s
        self.reads.append((self.clock.now, offset, len(view)))


def throttled(monkeypatch, rate: float, oversleep_s: float = 0.0, read_s: float = 0.0):
    clock = FakeClock(oversleep_s)
    monkeypatch.setattr(byte_sources, "time", clock)
    inner = RecordingSource(clock, read_s)
    return ThrottledSource(inner, rate), inner, clock


def read(source: ByteSource, file: Path, offset: int, size: int) -> bytes:
    buffer = bytearray(b"\xaa" * size)
    source.read_at(file, offset, memoryview(buffer))
    return bytes(buffer)


requests = st.tuples(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT))).map(sorted)


@settings(max_examples=60, deadline=None)
@given(
    stack=st.lists(st.sampled_from(sorted(LAYERS)), max_size=3),
    spans=st.lists(requests, min_size=1, max_size=5),
    keeps=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_any_reads_through_any_stack_are_the_files_bytes(stack, spans, keeps, file):
    with tempfile.TemporaryDirectory() as folder:
        source: ByteSource = FileSource()
        for number, name in enumerate(stack):
            source = LAYERS[name](source, Path(folder) / str(number))
        for (first, last), keep in [*zip(spans, keeps, strict=False)] * 2:
            buffer = bytearray(b"\xaa" * (last - first))
            source.read_at(file, first, memoryview(buffer), keep=keep)
            assert buffer == CONTENT[first:last]
        source.close()


@pytest.mark.parametrize("name", [None, *LAYERS])
def test_a_read_beyond_the_end_is_refused_by_name(name, file, tmp_path):
    source = FileSource() if name is None else LAYERS[name](FileSource(), tmp_path / "cache")
    message = rf"weights\.bin: truncated: ends at byte {len(CONTENT)}, expected \d+ or more"
    with pytest.raises(TruncatedFileError, match=message) as caught:
        read(source, file, len(CONTENT) - 70_000, 70_001)
    assert isinstance(caught.value, InputError)
    assert list((tmp_path / "cache").glob("*/*")) == []
    source.close()


def test_a_file_is_opened_once_by_many_threads_and_again_after_close(file, monkeypatch):
    opened, original = [], os.open
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(1) or original(*arguments))
    source, start = FileSource(), threading.Barrier(4)

    def read_half(number: int) -> bool:
        start.wait(10)
        first = number * 30_000
        return all(read(source, file, first, 150_000) == CONTENT[first:][:150_000] for _ in range(50))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read_half, range(4)))
    assert len(opened) == 1
    source.close()
    assert read(source, file, 3, 5) == CONTENT[3:8]
    assert len(opened) == 2
    source.close()


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_a_rate_that_is_not_positive_is_refused(rate):
    with pytest.raises(InputError, match="expected more than 0"):
        ThrottledSource(FileSource(), rate)


@pytest.mark.parametrize("size", [1, 1000, 64_000, 200_000])
def test_a_read_takes_its_bytes_over_the_rate(size, monkeypatch):
    source, inner, clock = throttled(monkeypatch, 64_000.0)
    source.read_at(Path("any"), 17, memoryview(bytearray(size)))
    assert clock.now - 100.0 == pytest.approx(size / 64_000)
    assert sum(count for _, _, count in inner.reads) == size
    assert max(count for _, _, count in inner.reads) <= 1000
    assert [offset for _, offset, _ in inner.reads] == [17 + first for first in range(0, size, 1000)]


@pytest.mark.parametrize("piece", [10, 999, 1000, 5000])
def test_oversleeping_is_made_up_for_and_never_more_than_that(piece, monkeypatch):
    source, _, clock = throttled(monkeypatch, 64_000.0, oversleep_s=0.002)
    done = 0
    while done < 128_000:
        source.read_at(Path("any"), done, memoryview(bytearray(piece)))
        done += piece
        assert clock.now - 100.0 >= done / 64_000 - 1e-9
    assert clock.now - 100.0 == pytest.approx(done / 64_000, rel=0.02)


def test_a_pause_gives_no_credit(monkeypatch):
    source, _, clock = throttled(monkeypatch, 64_000.0)
    for _ in range(3):
        started = clock.now
        source.read_at(Path("any"), 0, memoryview(bytearray(32_000)))
        assert clock.now - started == pytest.approx(0.5)
        clock.now += 30.0


def test_a_source_slower_than_the_rate_is_not_slowed_further(monkeypatch):
    source, inner, clock = throttled(monkeypatch, 64_000.0, read_s=0.1)
    source.read_at(Path("any"), 0, memoryview(bytearray(64_000)))
    assert len(inner.reads) == 64
    assert clock.now - 100.0 == pytest.approx(6.4)


def test_a_throttled_cache_hears_what_not_to_keep(file, tmp_path):
    cache = CachedSource(FileSource(), tmp_path, reserve_bytes=0)
    source = ThrottledSource(cache, 64 * 100_000)
    for keep, num_kept in [(False, 0), (True, 100_000)]:
        source.read_at(file, 0, memoryview(bytearray(100_000)), keep=keep)
        assert cache.num_bytes_kept == num_kept
    source.close()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_together_do_not_exceed_the_rate(num_threads, file):
    rate, share = 600_000, 300_000 // num_threads
    source = ThrottledSource(FileSource(), rate)
    started = time.monotonic()
    with ThreadPoolExecutor(num_threads) as threads:
        parts = list(threads.map(lambda n: read(source, file, n * share, share), range(num_threads)))
    assert b"".join(parts) == CONTENT
    assert time.monotonic() - started >= len(CONTENT) / rate
    source.close()
