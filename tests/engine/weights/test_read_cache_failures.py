"""The read-through cache on a disk that is full, broken or not to be written: the run goes on."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.engine.weights.byte_sources import FileSource
from strata.engine.weights.read_cache import CachedSource

from .cache_reads import SIZE, Usage, counts, extents, read, warnings_in


def test_the_reserve_is_left_free(file, make_cache, monkeypatch, caplog):
    free = iter([SIZE + 5000, SIZE + 4999, 10 * SIZE])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, next(free)))
    cache = make_cache(reserve_bytes=5000)
    for offset in (0, 1, 2):
        read(cache, file, offset)
    assert counts(cache) == (0, 3 * SIZE, SIZE)
    assert "5,000 bytes to leave free" in cache.stopped_because
    assert len(warnings_in(caplog)) == 1
    read(cache, file, 0)
    assert cache.num_bytes_from_cache == SIZE


def test_max_bytes_counts_what_earlier_runs_left(file, make_cache, caplog):
    read(make_cache(max_bytes=2 * SIZE), file, 0)
    second = make_cache(max_bytes=2 * SIZE)
    for offset in (1, 2, 3):
        read(second, file, offset)
    assert second.num_bytes_kept == SIZE
    assert second.cached_bytes(file) == 2 * SIZE
    assert "may hold 200,000 bytes and is full" in second.stopped_because
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("step", ["mkdir", "open", "write", "replace", "disk_usage"])
def test_a_write_that_fails_ends_the_caching_but_not_the_run(
    step, code, file, make_cache, tmp_path, monkeypatch, caplog
):
    cache = make_cache()
    read(cache, file, 0)
    num_calls = []

    def fail(*arguments, **settings):
        num_calls.append(1)
        raise OSError(code, os.strerror(code))

    class FullFile:
        def __enter__(self):
            return self

        def __exit__(self, *arguments):
            pass

        write = fail

    def open_full(path, mode):
        path.touch()
        return FullFile()

    owner, name = (shutil, "disk_usage") if step == "disk_usage" else (Path, step)
    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(Path, "open", open_full)
        else:
            patch.setattr(owner, name, fail)
        for offset in (1, 2, 3):
            read(cache, file, offset)
        read(cache, file, 0)
    assert len(num_calls) == 1
    assert counts(cache) == (SIZE, 4 * SIZE, SIZE)
    assert os.strerror(code) in cache.stopped_because
    assert warnings_in(caplog) == [
        f"{tmp_path / 'cache'}: the read cache takes no more: {cache.stopped_because}"
    ]
    assert [path.name for path in extents(tmp_path)] == [f"0-{SIZE}"]


def test_an_interrupted_write_leaves_nothing(file, make_cache, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(make_cache(), file, 0)
    assert extents(tmp_path) == []


def test_an_extent_that_cannot_be_read_is_read_from_the_file(file, make_cache, monkeypatch, caplog):
    def fail(*arguments):
        raise OSError(errno.EIO, "bad sector")

    read(make_cache(), file, 0)
    monkeypatch.setattr("strata.engine.weights.read_cache.fill_from", fail)
    second = make_cache()
    for _ in range(2):
        read(second, file, 0)
    assert counts(second) == (0, 2 * SIZE, 0)
    assert "cannot be read (bad sector)" in second.stopped_because
    assert len(warnings_in(caplog)) == 1


def test_a_folder_in_the_place_of_an_extent(file, make_cache, tmp_path):
    read(make_cache(), file, 0)
    (extent,) = extents(tmp_path)
    extent.unlink()
    extent.mkdir()
    second = make_cache()
    read(second, file, 0)
    assert counts(second) == (0, SIZE, 0)
    assert "cannot be written" in second.stopped_because


def test_a_folder_removed_during_the_run_ends_the_caching(file, make_cache, tmp_path):
    cache = make_cache()
    read(cache, file, 0)
    shutil.rmtree(tmp_path / "cache")
    for _ in range(2):
        read(cache, file, 0)
    assert counts(cache) == (0, 3 * SIZE, SIZE)
    assert cache.stopped_because is not None


def test_a_folder_that_cannot_be_made_is_refused(file, tmp_path):
    with pytest.raises(
        InputError, match=r"safetensors.cache: expected a folder for cached reads \(Not a dir"
    ):
        CachedSource(FileSource(), file / "cache")


def test_a_folder_not_to_be_written_is_still_read(file, make_cache, tmp_path, monkeypatch):
    read(make_cache(), file, 0)
    folder = extents(tmp_path)[0].parent
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere")
        second = make_cache()
        read(second, file, 0)
        read(second, file, 1)
    finally:
        folder.chmod(stat.S_IRWXU)
    assert counts(second) == (SIZE, SIZE, 0)
