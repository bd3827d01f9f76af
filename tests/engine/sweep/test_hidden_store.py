"""Hidden stores: rows come back as they were written, wherever they wait, and a full disk is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from strata.engine.plan.overrides import StoreKind
from strata.engine.sweep.hidden_store import DiskStore, HiddenStore, MemoryStore, StoreShape, make_store

CPU = torch.device("cpu")
WIDTH = 6
KINDS = ["device", "ram", "disk"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def shape_of(num_rows: int, dtype: torch.dtype = torch.float32) -> StoreShape:
    return StoreShape(num_rows=num_rows, width=WIDTH, dtype=dtype, device=CPU)


def store_of(kind: StoreKind, num_rows: int, folder: Path, dtype: torch.dtype = torch.float32) -> HiddenStore:
    return make_store(kind, shape_of(num_rows, dtype), folder)


def random_rows(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_come_back_bit_for_bit(kind, dtype, tmp_path):
    store, rows = store_of(kind, 10, tmp_path, dtype), random_rows(10, dtype)
    for first, last in ((7, 10), (0, 3), (3, 7)):
        store.write(first, rows[first:last])
    for first, last in ((0, 10), (2, 5), (9, 10)):
        read = store.read(first, last - first)
        assert (read.dtype, read.device) == (dtype, CPU)
        assert torch.equal(read, rows[first:last])
    store.close()


def test_writing_again_replaces_only_those_rows(kind, tmp_path):
    store, rows = store_of(kind, 8, tmp_path), random_rows(8)
    store.write(0, rows)
    newer = random_rows(3, seed=1)
    store.write(2, newer)
    assert torch.equal(store.read(0, 8), torch.cat((rows[:2], newer, rows[5:])))


def test_what_is_written_is_a_copy(kind, tmp_path):
    store, rows = store_of(kind, 4, tmp_path), random_rows(4)
    expected = rows.clone()
    store.write(0, rows)
    rows.fill_(torch.nan)
    assert torch.equal(store.read(0, 4), expected)


def test_rows_that_are_not_contiguous(kind, tmp_path):
    store, columns = store_of(kind, 5, tmp_path), random_rows(5).t().contiguous()
    store.write(0, columns.t())
    assert torch.equal(store.read(0, 5), columns.t())


def test_a_row_read_may_be_written_back_changed(kind, tmp_path):
    store, rows = store_of(kind, 4, tmp_path), random_rows(4)
    store.write(0, rows)
    store.write(1, store.read(1, 2) + 1)
    assert torch.equal(store.read(0, 4), torch.cat((rows[:1], rows[1:3] + 1, rows[3:])))


def test_an_empty_lane_has_an_empty_store(kind, tmp_path):
    store_of(kind, 0, tmp_path).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "expected"), [("device", MemoryStore), ("ram", MemoryStore), ("disk", DiskStore)]
)
def test_kinds(kind, expected, tmp_path):
    assert type(store_of(kind, 1, tmp_path)) is expected


def test_a_disk_store_leaves_no_file_and_two_do_not_mix(tmp_path):
    stores = [DiskStore(shape_of(4), tmp_path) for _ in range(2)]
    for seed, store in enumerate(stores):
        store.write(0, random_rows(4, seed=seed))
    assert list(tmp_path.iterdir()) == []
    for seed, store in enumerate(stores):
        assert torch.equal(store.read(0, 4), random_rows(4, seed=seed))
        store.close()
    with pytest.raises(ValueError, match="closed"):
        stores[0].read(0, 1)


def test_a_disk_store_has_its_whole_size_from_the_start(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fallocate", lambda descriptor, first, size: asked.append((first, size)))
    DiskStore(shape_of(10, torch.float16), tmp_path)
    assert asked == [(0, 10 * WIDTH * 2)], "a full disk has to show before the sweep, not in the middle of it"


def refuse(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left on device"):
        store_of("disk", 10, tmp_path)


def test_a_full_disk_is_told_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=tmp_path.name):
        store_of("disk", 10, tmp_path)


def test_reads_and_writes_that_the_system_cuts_short_are_gone_on_with(tmp_path, monkeypatch):
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: preadv(file, [views[0][:7]], offset))
    monkeypatch.setattr(os, "pwrite", lambda file, view, offset: pwrite(file, view[:5], offset))
    store, rows = store_of("disk", 6, tmp_path), random_rows(6)
    store.write(0, rows[:2])
    store.write(2, rows[2:])
    assert torch.equal(store.read(1, 5), rows[1:])
