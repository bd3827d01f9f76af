"""The rates of the roofline: their medians, and disks read without harm. Times nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from strata.scripts.bench.roofline import (
    GemmRate,
    GemmShapeRate,
    drop_page_cache,
    measure_disk_rate,
    measure_gemm_rate,
)


def test_gemm_rate_of_each_shape():
    rate = measure_gemm_rate(torch.float32, "cpu", [(8, 16, 4), (2, 4, 8)], seconds=0.0)
    assert (rate.dtype, rate.device) == ("float32", "cpu")
    assert [(shape.m, shape.k, shape.n, shape.num_repeats) for shape in rate.per_shape] == [
        (8, 16, 4, 3),
        (2, 4, 8, 3),
    ]
    assert all(shape.median_flop_per_s > 0 for shape in rate.per_shape)
    with pytest.raises(ValueError, match="shapes is empty"):
        measure_gemm_rate(torch.float32, "cpu", [])


def test_best_gemm_rate_is_the_largest_median():
    slow = GemmShapeRate(m=1, k=5, n=10, num_repeats=3, median_flop_per_s=100.0)
    fast = replace(slow, median_flop_per_s=400.0)
    rate = GemmRate(dtype="float32", device="cpu", per_shape=(slow, fast))
    assert rate.best_flop_per_s == 400.0


def test_disk_rate_reads_files_and_folders_and_leaves_them_whole(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.bin").write_bytes(b"x" * 5000)
    (tmp_path / "below" / "b.bin").write_bytes(b"y" * 3000)
    assert measure_disk_rate(tmp_path, 6000) > 0
    assert measure_disk_rate(tmp_path / "a.bin", 1 << 30) > 0
    drop_page_cache([tmp_path, tmp_path / "a.bin"])
    assert (tmp_path / "a.bin").read_bytes() == b"x" * 5000
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no bytes to read"):
        measure_disk_rate(tmp_path / "empty", 10)
