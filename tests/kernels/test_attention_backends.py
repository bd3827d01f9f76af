"""Which backend of prefix attention is chosen for what, and what it says of its tiles and their memory."""

from __future__ import annotations

import pytest
import torch

from strata.kernels.prefix_attention import registry
from strata.kernels.prefix_attention.backend import AttentionRequest, TileSize
from strata.kernels.prefix_attention.registry import BACKENDS, choose_backend

NUM_HEADS = 4


def request(device_type: str, *, softcap: bool = False, gradients: bool = False) -> AttentionRequest:
    return AttentionRequest(device_type=device_type, has_softcap=softcap, needs_gradients=gradients)


def size(rows: int, dtype: torch.dtype) -> TileSize:
    return TileSize(rows=rows, keys=1_000, num_heads=NUM_HEADS, head_dim=16, itemsize=dtype.itemsize)


@pytest.mark.parametrize(
    ("asked", "name", "tile_rows"),
    [
        (request("cpu"), "blocked", 128),
        (request("cpu", softcap=True), "blocked", 128),
        (request("cpu", gradients=True), "differentiable", 128),
        (request("cpu", softcap=True, gradients=True), "differentiable", 128),
        (request("cuda"), "sdpa", 2048),
        (request("cuda", softcap=True), "blocked-cuda", 2048),
        (request("cuda", gradients=True), "sdpa", 2048),
        (request("cuda", softcap=True, gradients=True), "differentiable-cuda", 2048),
        (request("meta"), "sdpa", 2048),
        (request("meta", softcap=True), "blocked", 128),
        # What autograd keeps is counted there: it must be what the tiled backend keeps, not an unfused SDPA.
        (request("meta", gradients=True), "differentiable", 128),
    ],
    ids=str,
)
def test_who_computes_what(asked: AttentionRequest, name: str, tile_rows: int) -> None:
    backend = choose_backend(asked)
    assert (backend.name, backend.tile_rows) == (name, tile_rows)


def test_names_are_distinct() -> None:
    assert len({backend.name for backend in BACKENDS}) == len(BACKENDS)


def test_what_nobody_takes_is_refused_with_the_names_of_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "BACKENDS", BACKENDS[:2])
    with pytest.raises(ValueError, match=r"takes AttentionRequest\(device_type='cuda', .*sdpa, blocked$"):
        choose_backend(request("cuda", softcap=True))


@pytest.mark.parametrize("softcap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scratch_on_cpu_holds_a_tiles_scores(softcap: bool, dtype: torch.dtype) -> None:
    asked = request("cpu", softcap=softcap)
    scores = torch.empty(NUM_HEADS, 128, 1_000, dtype=dtype)
    # A soft cap works on a copy in float32.
    needed = scores.nbytes + (scores.numel() * 4 if softcap else 0)
    assert choose_backend(asked).scratch_bytes(size(128, dtype), asked) >= needed


def test_soft_capped_scores_take_memory_on_cuda_too() -> None:
    """SDPA knows no soft cap, so a tile's scores exist as a whole there, and grow with its rows and heads."""
    scores = 2 * NUM_HEADS * 2_048 * 1_000
    for softcap in (True, False):
        asked = request("cuda", softcap=softcap)
        scratch = choose_backend(asked).scratch_bytes(size(2_048, torch.float16), asked)
        assert (scratch >= scores) == softcap


@pytest.mark.parametrize(
    ("asked", "per_element"), [(request("cpu"), 4), (request("cpu", softcap=True), 10)], ids=str
)
def test_scratch_in_bytes(asked: AttentionRequest, per_element: int) -> None:
    tile = size(128, torch.bfloat16)
    assert choose_backend(asked).scratch_bytes(tile, asked) == NUM_HEADS * 128 * 1_000 * per_element
    on_cuda = request("cuda")
    expanded, mask = 2 * NUM_HEADS * 1_000 * 16 * 2, 2 * 128 * 1_000
    assert choose_backend(on_cuda).scratch_bytes(tile, on_cuda) == expanded + mask


def test_a_backward_pass_needs_more_than_a_forward_pass() -> None:
    scratch = [
        choose_backend(asked).scratch_bytes(size(128, torch.float32), asked)
        for asked in (request("cpu"), request("cpu", gradients=True))
    ]
    assert scratch[1] > scratch[0]
