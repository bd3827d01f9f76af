"""The read-through cache: what it keeps, finds again and ignores, and who may share it."""

from __future__ import annotations

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from strata.engine.weights.byte_sources import FileSource
from strata.engine.weights.read_cache import ABANDONED_S, MIN_EXTENT_BYTES

from .cache_reads import CONTENT, SIZE, counts, extents, read


def test_the_second_read_comes_from_the_cache(file, make_cache):
    cache = make_cache()
    for _ in range(3):
        read(cache, file, 0)
        read(cache, file, 12_345)
    assert counts(cache) == (4 * SIZE, 2 * SIZE, 2 * SIZE)
    assert cache.stopped_because is None


def test_a_second_run_reads_what_the_first_left_and_not_the_file(file, make_cache, monkeypatch):
    read(make_cache(), file, 1000)
    monkeypatch.setattr(FileSource, "read_at", None)
    second = make_cache()
    read(second, file, 1000)
    assert counts(second) == (SIZE, 0, 0)


def test_small_requests_and_those_not_to_be_kept_pass(file, make_cache, tmp_path):
    cache = make_cache()
    for _ in range(2):
        read(cache, file, 0, MIN_EXTENT_BYTES - 1)
        cache.read_at(file, 0, memoryview(bytearray(SIZE)), keep=False)
    assert counts(cache) == (0, 2 * (MIN_EXTENT_BYTES - 1 + SIZE), 0)
    assert extents(tmp_path) == []
    read(cache, file, 0, MIN_EXTENT_BYTES)
    assert [path.name for path in extents(tmp_path)] == [f"0-{MIN_EXTENT_BYTES}"]


@pytest.mark.parametrize("change", ["content and mtime", "mtime", "size"])
def test_a_changed_file_is_another_file(change, file, make_cache):
    read(make_cache(), file, 0)
    content = CONTENT
    if change != "mtime":
        content = CONTENT[::-1] + (b"more" if change == "size" else b"")
        before = file.stat()
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change != "size":
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    second = make_cache()
    read(second, file, 0, content=content)
    assert counts(second) == (0, SIZE, SIZE)


def test_files_of_one_name_are_kept_apart_and_a_link_is_its_target(file, make_cache, tmp_path):
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    other.write_bytes(CONTENT[::-1])
    os.utime(other, ns=(0, file.stat().st_mtime_ns))
    link = tmp_path / "link.safetensors"
    link.symlink_to(file)
    cache = make_cache()
    read(cache, file, 0)
    read(cache, other, 0, content=CONTENT[::-1])
    read(cache, link, 0)
    assert counts(cache) == (SIZE, 2 * SIZE, 2 * SIZE)
    assert cache.cached_bytes(link) == SIZE


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_an_extent_of_a_wrong_size_is_replaced(size, file, make_cache, tmp_path):
    read(make_cache(), file, 0)
    (extent,) = extents(tmp_path)
    extent.write_bytes(b"x" * size)
    second = make_cache()
    assert (second.holds(file, 0, SIZE), second.cached_bytes(file)) == (False, 0)
    read(second, file, 0)
    assert counts(second) == (0, SIZE, SIZE)
    assert extent.read_bytes() == CONTENT[:SIZE]


def test_half_written_files_are_ignored_and_removed_once_old(file, make_cache, tmp_path):
    read(make_cache(), file, 0)
    (extent,) = extents(tmp_path)
    old, fresh = (extent.with_name(f".0-{SIZE}.{number}-0123.tmp") for number in (1, 2))
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, old.stat().st_mtime - ABANDONED_S - 60))
    extent.unlink()
    second = make_cache()
    assert second.cached_bytes(file) == 0
    read(second, file, 0)
    assert counts(second) == (0, SIZE, SIZE)
    assert extents(tmp_path) == [fresh, extent]


def test_a_planner_can_ask_what_is_there(file, make_cache):
    first = make_cache()
    assert (first.holds(file, 0, SIZE), first.cached_bytes(file)) == (False, 0)
    read(first, file, 0)
    read(first, file, SIZE, 2 * SIZE)
    second = make_cache()
    assert second.cached_bytes(file) == 3 * SIZE
    assert second.holds(file, 0, SIZE)
    assert second.holds(file, SIZE, 2 * SIZE)
    assert not second.holds(file, 0, 2 * SIZE)
    assert counts(second) == (0, 0, 0)


@pytest.mark.parametrize("refused", [False, True])
def test_pages_of_the_file_are_given_up_for_those_of_the_cache(refused, file, make_cache, monkeypatch):
    advised = []

    def advise(descriptor, offset, size, advice):
        advised.append((os.readlink(f"/proc/self/fd/{descriptor}"), offset, size, advice))
        if refused:
            raise OSError(errno.EINVAL, "no advice taken")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    cache = make_cache(max_bytes=SIZE)
    for offset, size in [(7, SIZE), (7, SIZE), (8, SIZE), (0, 100)]:
        read(cache, file, offset, size)
    assert advised == [(str(file.resolve()), 7, SIZE, os.POSIX_FADV_DONTNEED)]


def test_files_of_others_in_the_folder_are_left_alone(file, make_cache, tmp_path):
    others = [tmp_path / "cache" / "theirs" / ".0-1.tmp", tmp_path / "cache" / "notes.tmp"]
    others[0].parent.mkdir(parents=True)
    for path in others:
        path.write_bytes(b"x" * 10 * SIZE)
        os.utime(path, (0, 0))
    cache = make_cache(max_bytes=SIZE)
    read(cache, file, 0)
    assert cache.num_bytes_kept == SIZE
    assert all(path.is_file() for path in others)


def test_threads_and_two_runs_share_a_folder(file, make_cache, tmp_path):
    caches = [make_cache(), make_cache()]
    offsets = [index % 5 * SIZE for index in range(200)]
    random.Random(1).shuffle(offsets)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda at: read(caches[at[0] % 2], file, at[1]), enumerate(offsets)))
    assert sum(cache.num_bytes_from_cache + cache.num_bytes_from_source for cache in caches) == 200 * SIZE
    assert sum(cache.num_bytes_from_cache for cache in caches) >= 100 * SIZE
    assert [path.name for path in extents(tmp_path)] == sorted(f"{n * SIZE}-{SIZE}" for n in range(5))
