"""Which backend of prefix attention is chosen for what, and what it says of its tiles and their memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from strata.kernels.prefix_attention import registry, varlen
from strata.kernels.prefix_attention.backend import AttentionRequest, TileSize
from strata.kernels.prefix_attention.blocked import BLOCKED_ON_CPU
from strata.kernels.prefix_attention.registry import BACKENDS, choose_backend
from strata.kernels.prefix_attention.sequences import GATHERED_KEYS
from strata.kernels.prefix_attention.varlen import EFFICIENT

NUM_HEADS = 4


def request(
    device_type: str, *, softcap: bool = False, gradients: bool = False, **rest: Any
) -> AttentionRequest:
    return AttentionRequest(device_type=device_type, has_softcap=softcap, needs_gradients=gradients, **rest)


def on_card(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int = 128, **rest: Any
) -> AttentionRequest:
    return request("cuda", capability=capability, dtype=dtype, head_dim=head_dim, **rest)


def size(rows: int, dtype: torch.dtype) -> TileSize:
    return TileSize(
        rows=rows, keys=1_000, num_heads=NUM_HEADS, num_kv_heads=2, head_dim=16, itemsize=dtype.itemsize
    )


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with AMX, a build of torch for CUDA, and no package flash-attn."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(varlen, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


@pytest.mark.parametrize(
    ("asked", "name", "max_rows"),
    [
        (request("cpu"), "blocked", 128),
        (request("cpu", dtype=torch.float32), "blocked", 128),
        (request("cpu", dtype=torch.bfloat16), "flash-cpu", None),
        (request("cpu", dtype=torch.bfloat16, has_window=True), "blocked", 128),
        (request("cpu", dtype=torch.bfloat16, gradients=True), "differentiable", 128),
        (request("cpu", softcap=True), "blocked", 128),
        (request("cpu", gradients=True), "differentiable", 128),
        (request("cpu", softcap=True, gradients=True), "differentiable", 128),
        (request("cuda"), "efficient-varlen", None),
        (request("cuda", softcap=True), "blocked-cuda", 512),
        (request("cuda", gradients=True), "efficient-varlen", None),
        (request("cuda", softcap=True, gradients=True), "differentiable-cuda", 512),
        (on_card((7, 5), torch.float16), "efficient-varlen", None),
        (on_card((7, 5), torch.float32), "efficient-varlen", None),
        (on_card((7, 5), torch.bfloat16), "sdpa", 2048),
        (on_card((8, 0), torch.bfloat16), "flash-varlen", None),
        (on_card((9, 0), torch.float16, gradients=True), "flash-varlen", None),
        (on_card((9, 0), torch.float16, 257), "efficient-varlen", None),
        (on_card((9, 0), torch.float16, 12), "efficient-varlen", None),
        (on_card((9, 0), torch.float32), "efficient-varlen", None),
        (on_card((9, 0), torch.float64), "sdpa", 2048),
        (on_card((9, 0), torch.bfloat16, softcap=True), "blocked-cuda", 512),
        (request("meta"), "sdpa", 2048),
        (request("meta", softcap=True), "blocked", 128),
        # What autograd keeps is counted there: it must be what the tiled backend keeps, not an unfused SDPA.
        (request("meta", gradients=True), "differentiable", 128),
    ],
    ids=str,
)
def test_who_computes_what(asked: AttentionRequest, name: str, max_rows: int | None) -> None:
    backend = choose_backend(asked)
    assert (backend.name, backend.cut.max_rows) == (name, max_rows)


def test_without_amx_scores_are_blocked_in_bfloat16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_backend(request("cpu", dtype=torch.bfloat16)).name == "blocked"


def test_the_package_flash_attn_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "find_spec", lambda name: object())
    for softcap in (False, True):
        assert choose_backend(on_card((8, 0), torch.bfloat16, softcap=softcap)).name == "flash-attn"
        assert choose_backend(on_card((7, 5), torch.float16, softcap=softcap)).name != "flash-attn"


def test_names_are_distinct() -> None:
    assert len({backend.name for backend in BACKENDS}) == len(BACKENDS)


def test_what_nobody_takes_is_refused_with_the_names_of_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "BACKENDS", [EFFICIENT, BLOCKED_ON_CPU])
    with pytest.raises(
        ValueError, match=r"takes AttentionRequest\(device_type='cuda', .*efficient-varlen, blocked$"
    ):
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
    """torch's kernels know no soft cap, so a tile's scores exist as a whole, and grow with rows and heads."""
    scores, asked = 2 * NUM_HEADS * 512 * 1_000, request("cuda", softcap=True)
    assert choose_backend(asked).scratch_bytes(size(512, torch.float16), asked) >= scores


@pytest.mark.parametrize(
    ("asked", "per_element"), [(request("cpu"), 4), (request("cpu", softcap=True), 10)], ids=str
)
def test_scratch_in_bytes(asked: AttentionRequest, per_element: int) -> None:
    tile = size(128, torch.bfloat16)
    assert choose_backend(asked).scratch_bytes(tile, asked) == NUM_HEADS * 128 * 1_000 * per_element
    on_cuda = request("cuda")
    result = 128 * NUM_HEADS * 16 * 4
    gathered = 2 * 2 * GATHERED_KEYS * 16 * 2
    assert choose_backend(on_cuda).scratch_bytes(tile, on_cuda) == gathered + result


def test_a_backward_pass_needs_more_than_a_forward_pass() -> None:
    scratch = [
        choose_backend(asked).scratch_bytes(size(128, torch.float32), asked)
        for asked in (request("cpu"), request("cpu", gradients=True))
    ]
    assert scratch[1] > scratch[0]
