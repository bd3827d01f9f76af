"""Keys gathered and parts of attention merged, interpreted or on a card, beside plain torch and float64.

The interpreter cuts float32 off to bfloat16 where a card rounds: merging is then tried in the other dtypes.
"""

from __future__ import annotations

import os

import pytest
import torch

from strata.kernels.prefix_attention.triton_kernels import launch_gather_keys, launch_merge_attention

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16) if IS_INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (2, 64), (5, 42), (32, 128), (3, 256)], ids=str)
@pytest.mark.parametrize("num_keys", [1, 9, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gathered_keys(heads: int, head_dim: int, num_keys: int, dtype: torch.dtype) -> None:
    space = draw(2, heads, 50, head_dim, dtype=dtype)
    index = torch.randint(0, 50, (num_keys,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for states in (space[1], draw(50, heads, head_dim, dtype=dtype).transpose(0, 1)):
        found = launch_gather_keys(states, index)
        assert found.shape == (num_keys, heads, head_dim)
        assert torch.equal(found.transpose(0, 1), states.index_select(1, index))


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 8), (4, 64), (3, 80), (64, 128)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows_come_last", [False, True])
def test_merged_parts(heads: int, head_dim: int, dtype: torch.dtype, rows_come_last: bool) -> None:
    own, other = draw(7, heads, head_dim, dtype=dtype), draw(3, heads, head_dim, dtype=dtype, seed=1)
    if rows_come_last:
        own = own.transpose(0, 1).contiguous().transpose(0, 1)
    lse, other_lse = 3 * draw(heads, 7, seed=2), 3 * draw(heads, 3, seed=3)
    lse[0, 5], other_lse[0, 0] = 200.0, -200.0
    rows = torch.tensor([5, 0, 3], device=DEVICE)
    exact = own.double()
    weight = torch.sigmoid(other_lse.double() - lse.double()[:, rows]).T[..., None]
    exact[rows] += weight * (other.double() - exact[rows])
    untouched = own.clone()
    launch_merge_attention(own, lse, other, other_lse, rows)
    torch.testing.assert_close(own.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    for row in (1, 2, 4, 6):
        assert torch.equal(own[row], untouched[row])
