"""Exact top-k against a brute-force float64 search, whatever the shards, tiles, devices, dtypes and ties."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.retrieval.index.vector_shard import VectorShard, pack_signs, quantise_int8, unpack_signs
from strata.retrieval.searchers import scan
from strata.retrieval.searchers.running_top_k import RunningTopK
from strata.retrieval.searchers.scan import ScanSettings, entries_above, relative_error
from strata.retrieval.searchers.top_k import find_top_k
from strata.retrieval.types import Ranking

DTYPES = ("float32", "bfloat16")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def brute_force(queries: np.ndarray, vectors: np.ndarray, top_k: int) -> np.ndarray:
    """Rows [Q, k] by descending float64 score, ties by lower row, -1 where there are no more rows."""
    found = np.full((len(queries), top_k), -1, dtype=np.int64)
    for place, query in enumerate(queries.astype(np.float64)):
        scores = np.array([np.sum(query * row) for row in vectors.astype(np.float64)])
        best = np.argsort(-scores, kind="stable")[:top_k]
        found[place, : len(best)] = best
    return found


def search_top_k(
    queries: np.ndarray,
    shards: Iterable[VectorShard],
    top_k: int,
    devices: Sequence[str] = ("cpu",),
    **settings: Any,
) -> Ranking:
    return find_top_k(queries, shards, top_k, devices=devices, settings=ScanSettings(**settings)).ranking()


def cut(vectors: np.ndarray, shard_rows: int, scales: np.ndarray | None = None) -> list[VectorShard]:
    return [
        VectorShard(
            first_row=start,
            codes=vectors[start : start + shard_rows],
            scales=None if scales is None else scales[start : start + shard_rows],
            dim=vectors.shape[1],
        )
        for start in range(0, len(vectors), shard_rows)
    ]


def unit_vectors(num_rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num_rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shard_rows", "tile_rows", "devices"),
    [
        (3000, 4096, ("cpu",)),
        (1000, 257, ("cpu",)),
        (1, 4096, ("cpu",)),
        (7, 64, ("cpu", "cpu")),
        (501, 100, ("cpu",) * 3),
    ],
)
def test_equals_brute_force(shard_rows: int, tile_rows: int, devices: tuple[str, ...], dtype: str) -> None:
    vectors = unit_vectors(1500 if shard_rows > 1 else 60, 48, seed=1)
    vectors[20:40] = vectors[:20]
    queries = unit_vectors(9, 48, seed=2).astype(np.float32) * np.linspace(0.1, 40, 9)[:, None]
    queries[3] = vectors[5]
    queries[4] = 0
    expected = brute_force(queries, vectors, 25)
    shards = cut(vectors, shard_rows)
    found = search_top_k(queries, shards, 25, devices=devices, fast_dtype=dtype, tile_rows=tile_rows)
    np.testing.assert_array_equal(found.rows, expected)
    exact = np.einsum("qd,qkd->qk", queries.astype(np.float64), vectors[expected].astype(np.float64))
    np.testing.assert_allclose(found.scores, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", ["auto", *DTYPES])
@pytest.mark.parametrize("devices", [("cuda:0",), ("cuda:0", "cuda:0"), ("cuda:0", "cpu")])
@pytest.mark.parametrize("stored", ["float16", "int8", "binary"])
def test_equals_brute_force_on_cuda(stored: str, devices: tuple[str, ...], dtype: str) -> None:
    """Rows that tie and rows that only float64 tells apart, on one device or shared with another."""
    vectors, scales = unit_vectors(3000, 64, seed=1), None
    vectors[1020:1040] = vectors[:20]
    vectors[2000:2400] = vectors[7]
    vectors[2000:2400, 0] = (np.random.default_rng(4).permutation(400) * 2.0**-14).astype(np.float16)
    queries = unit_vectors(9, 64, seed=2).astype(np.float32) * np.linspace(0.1, 40, 9)[:, None]
    queries[3] = vectors[7]
    queries[4] = 0
    rows = vectors.astype(np.float64)
    if stored == "int8":
        vectors, scales = quantise_int8(vectors)
        rows = vectors.astype(np.float64) * scales[:, None]
    elif stored == "binary":
        rows = np.where(vectors > 0, 1.0, -1.0)
        vectors = pack_signs(vectors)
    shards = [
        VectorShard(
            first_row=start,
            codes=vectors[start : start + 700],
            scales=None if scales is None else scales[start : start + 700],
            dim=64,
        )
        for start in range(0, 3000, 700)
    ]
    found = search_top_k(queries, shards, 50, devices=devices, fast_dtype=dtype, tile_rows=257)
    np.testing.assert_array_equal(found.rows, brute_force(queries, rows, 50))


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(0, 150),
    dim=st.integers(1, 9),
    top_k=st.integers(1, 160),
    shard_rows=st.integers(1, 160),
    tile_rows=st.integers(1, 160),
    num_devices=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_ties_go_to_the_lower_row(
    num_rows: int,
    dim: int,
    top_k: int,
    shard_rows: int,
    tile_rows: int,
    num_devices: int,
    dtype: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    vectors = random.integers(-1, 2, (num_rows, dim)).astype(np.float16)
    queries = random.integers(-2, 3, (4, dim)).astype(np.float32)
    found = search_top_k(
        queries,
        cut(vectors, shard_rows),
        top_k,
        devices=("cpu",) * num_devices,
        fast_dtype=dtype,
        tile_rows=tile_rows,
    )
    np.testing.assert_array_equal(found.rows, brute_force(queries, vectors, top_k))
    assert np.isneginf(found.scores[found.rows < 0]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "tile_rows"), [(400, 4096), (20, 25), (3, 70)])
def test_rows_closer_than_the_fast_pass_can_tell(
    top_k: int, tile_rows: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that differ in one float16 step of one value: both GEMMs round this away, float64 does not."""
    monkeypatch.setattr(scan, "CROWDED", 2.0)
    vectors = np.repeat(unit_vectors(1, 256, seed=3), 400, axis=0)
    order = np.random.default_rng(4).permutation(400)
    step = np.float16(2**-14)
    vectors[:, 0] = (order * step).astype(np.float16)
    # Of many queries, the fast pass scores some too low throughout.
    queries = unit_vectors(40, 256, seed=5).astype(np.float32)
    queries[:, 0] = 2.0**-18
    found = search_top_k(queries, cut(vectors, 100), top_k, fast_dtype=dtype, tile_rows=tile_rows)
    np.testing.assert_array_equal(found.rows, np.tile(np.argsort(-order)[:top_k], (40, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_rows_are_searched_as_their_own_dequantised_values(dtype: str) -> None:
    raw = np.random.default_rng(5).standard_normal((700, 33)).astype(np.float32)
    raw *= np.random.default_rng(6).uniform(0.01, 30, (700, 1)).astype(np.float32)
    codes, scales = quantise_int8(raw)
    queries = np.random.default_rng(7).standard_normal((5, 33)).astype(np.float32)
    expected = brute_force(queries, codes.astype(np.float64) * scales[:, None].astype(np.float64), 12)
    found = search_top_k(queries, cut(codes, 150, scales), 12, fast_dtype=dtype)
    np.testing.assert_array_equal(found.rows, expected)


def test_sign_bits_are_searched_as_plus_and_minus_one() -> None:
    raw = np.random.default_rng(8).standard_normal((300, 21)).astype(np.float16)
    bits = pack_signs(raw)
    signs = np.where(raw > 0, 1, -1)
    np.testing.assert_array_equal(unpack_signs(bits, 21), signs)
    queries = np.random.default_rng(9).standard_normal((4, 21)).astype(np.float32)
    shards = [
        VectorShard(first_row=first, codes=bits[first : first + 70], dim=21) for first in range(0, 300, 70)
    ]
    np.testing.assert_array_equal(search_top_k(queries, shards, 9).rows, brute_force(queries, signs, 9))


def test_read_only_shards_are_left_as_they_are() -> None:
    vectors = unit_vectors(50, 8, seed=1)
    before = vectors.copy()
    vectors.flags.writeable = False
    found = search_top_k(np.ones((1, 8), dtype=np.float32), cut(vectors, 20), 3)
    np.testing.assert_array_equal(found.rows, brute_force(np.ones((1, 8)), vectors, 3))
    np.testing.assert_array_equal(vectors, before)


def test_a_shard_is_let_go_before_the_next_is_opened() -> None:
    opened: list[weakref.ref[VectorShard]] = []

    def open_shard(number: int) -> VectorShard:
        assert [shard() for shard in opened] == [None] * number
        codes = unit_vectors(10, 8, seed=number)
        shard = VectorShard(first_row=10 * number, codes=codes, dim=8)
        opened.append(weakref.ref(shard))
        return shard

    find_top_k(np.ones((2, 8), dtype=np.float32), (open_shard(number) for number in range(4)), 3)
    assert len(opened) == 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [3, 384])
def test_the_error_bound_holds_where_rounding_is_worst(dim: int, dtype: str) -> None:
    """All values just beside a rounding boundary of bfloat16, all products of one sign: no error cancels."""
    values = np.full((64, dim), 1 + 2**-8 - 2**-10, dtype=np.float16)
    query = np.full((1, dim), 1 + 2**-8 - 2**-20, dtype=np.float32)
    torch_dtype = getattr(torch, dtype)
    rows = torch.from_numpy(values).to(torch_dtype)
    fast = (torch.from_numpy(query).to(torch_dtype) @ rows.T).double().numpy()
    exact = query.astype(np.float64) @ values.astype(np.float64).T
    norms = np.linalg.norm(query.astype(np.float64)) * np.linalg.norm(values[0].astype(np.float64))
    assert np.abs(fast - exact).max() <= relative_error(torch_dtype, rows) * norms


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
def test_entries_above_finds_every_entry_once(columns: int) -> None:
    scores = torch.randn(5, columns)
    floors = torch.tensor([-float("inf"), 0.0, 1.0, 9.0, float(scores[4].max())])
    queries, found = entries_above(scores, floors)
    assert sorted(zip(queries, found, strict=True)) == sorted(
        zip(*np.nonzero(scores.numpy() > floors.numpy()[:, None]), strict=True)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_named(value: float, max_norm: float | None, dtype: str) -> None:
    vectors = unit_vectors(90, 8, seed=1)
    vectors[71, 3] = value
    shard = VectorShard(first_row=500, codes=vectors, dim=8, max_norm=max_norm)
    query = np.full((1, 8), np.copysign(1, value), dtype=np.float32)
    with pytest.raises(FloatingPointError, match="row 571 is not finite"):
        search_top_k(query, [shard], 3, fast_dtype=dtype)


def test_no_queries_and_no_rows() -> None:
    assert search_top_k(np.zeros((0, 8)), cut(unit_vectors(9, 8, seed=1), 4), 3).rows.shape == (0, 3)
    assert (search_top_k(np.ones((2, 8)), [], 3).rows == -1).all()


def test_what_means_nothing_is_refused() -> None:
    shards = cut(unit_vectors(9, 8, seed=1), 4)
    with pytest.raises(ValueError, match="top_k is 0"):
        search_top_k(np.ones((1, 8)), shards, 0)
    with pytest.raises(ValueError, match="NaN"):
        search_top_k(np.full((1, 8), np.nan), shards, 1)
    with pytest.raises(ValueError, match="8 dimensions, the queries 7"):
        search_top_k(np.ones((1, 7)), shards, 1)


def test_running_top_k_waits_and_merges() -> None:
    best = RunningTopK(2, 2)
    best.add(np.array([1]), np.array([7]), np.array([0.5]))
    assert best.kth_scores().tolist() == [-np.inf, -np.inf]
    best.add(np.array([1, 1, 0]), np.array([3, 9, 4]), np.array([0.5, 0.7, -1.0]))
    best.merge()
    assert best.rows.tolist() == [[4, -1], [9, 3]]
    assert best.kth_scores().tolist() == [-np.inf, 0.5]
