"""The fused functions as Triton kernels, without tl.dot, so that they compile for sm75. Imports triton.

Every kernel computes in float32 and rounds once, but where a family rounds in between. Sizes that vary from
call to call are not specialised on: a kernel is compiled once for a dtype and a width.
Legend: T rows or tokens, D model dim, N query heads, K kv heads, H head dim, R rotated features, F FFN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE_ELEMENTS = 2048
"""Of a program whose rows are short: it takes several."""

WIDEST_ROW = 16384
"""Elements of the widest row that a program holds in registers without spilling."""

ROTATED_HEADS = 8
"""Heads that a program rotates for one token."""

GATED_BLOCK = 1024


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    total,
    num_rows,
    width,
    eps,
    offset,
    HAS_RESIDUAL: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [T, D] = norm of x, or of residual + x, which total [T, D] then holds; ROWS rows a program."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    mask = (rows < num_rows)[:, None] & (columns < width)[None, :]
    at = rows[:, None] * width + columns[None, :]
    wide = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        wide += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=mask)
        wide = rounded.to(tl.float32)
    mean_square = tl.sum(wide * wide, axis=1) / width
    normed = wide * tl.rsqrt(mean_square + eps)[:, None]
    if ROUNDS_FIRST:
        normed = normed.to(out.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32) + offset
    tl.store(out + at, (normed * gain[None, :]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rotate_heads(
    given,
    out,
    given_token,
    given_head,
    out_token,
    out_head,
    token,
    first_head,
    num_heads,
    cos,
    sin,
    head_dim,
    width,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """HEADS heads of one token: features i and i + R / 2 turn together, those past R are copied."""
    heads = first_head + tl.arange(0, HEADS)
    half = width // 2
    i = tl.arange(0, HALF)
    is_pair = i < half
    mask = (heads < num_heads)[:, None] & is_pair[None, :]
    source = given + token * given_token + heads[:, None] * given_head
    target = out + token * out_token + heads[:, None] * out_head
    first = tl.load(source + i[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + half + i[None, :], mask=mask, other=0.0).to(tl.float32)
    angle = token * width + i
    cos_first = tl.load(cos + angle, mask=is_pair, other=0.0).to(tl.float32)[None, :]
    cos_second = tl.load(cos + angle + half, mask=is_pair, other=0.0).to(tl.float32)[None, :]
    sin_first = tl.load(sin + angle, mask=is_pair, other=0.0).to(tl.float32)[None, :]
    sin_second = tl.load(sin + angle + half, mask=is_pair, other=0.0).to(tl.float32)[None, :]
    dtype = out.dtype.element_ty
    tl.store(target + i[None, :], (first * cos_first - second * sin_first).to(dtype), mask=mask)
    tl.store(target + half + i[None, :], (second * cos_second + first * sin_second).to(dtype), mask=mask)
    if REST > 0:
        j = width + tl.arange(0, REST)
        kept = (heads < num_heads)[:, None] & (j < head_dim)[None, :]
        tl.store(target + j[None, :], tl.load(source + j[None, :], mask=kept, other=0.0), mask=kept)


@triton.jit
def rotate_kernel(
    query,
    key,
    cos,
    sin,
    query_out,
    key_out,
    query_token,
    query_head,
    key_token,
    key_head,
    query_out_token,
    query_out_head,
    key_out_token,
    key_out_head,
    num_heads,
    num_kv_heads,
    head_dim,
    width,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """One token and HEADS heads a program; programs of the keys follow those of the queries."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    num_query_blocks = tl.cdiv(num_heads, HEADS)
    if block < num_query_blocks:
        _rotate_heads(
            query,
            query_out,
            query_token,
            query_head,
            query_out_token,
            query_out_head,
            token,
            block * HEADS,
            num_heads,
            cos,
            sin,
            head_dim,
            width,
            HEADS,
            HALF,
            REST,
        )
    else:
        _rotate_heads(
            key,
            key_out,
            key_token,
            key_head,
            key_out_token,
            key_out_head,
            token,
            (block - num_query_blocks) * HEADS,
            num_kv_heads,
            cos,
            sin,
            head_dim,
            width,
            HEADS,
            HALF,
            REST,
        )


@triton.jit
def gated_kernel(gate, up, out, gate_row, up_row, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """out [T, F] = activation(gate) * up, BLOCK columns of a row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    x = tl.load(gate + row * gate_row + columns, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        activated = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 * (1 + tanh(u)) is the logistic function of 2 u.
        activated = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    else:
        activated = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    product = activated * tl.load(up + row * up_row + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, product.to(out.dtype.element_ty), mask=mask)


def norm_tile(width: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile for rows of a width, and its warps."""
    block = triton.next_power_of_2(width)
    rows = max(1, TILE_ELEMENTS // block)
    return rows, block, min(16, max(4, block // 1024))


def launch_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    rounds_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm, sum) of x [..., D] and a residual; without one the sum is x itself."""
    given = x.contiguous()
    added = given if residual is None else residual.contiguous()
    width = given.shape[-1]
    num_rows = given.numel() // width
    out = torch.empty_like(given)
    total = given if residual is None else torch.empty_like(given)
    rows, block, num_warps = norm_tile(width)
    if num_rows:
        with torch.cuda.device_of(given):
            rms_norm_kernel[(triton.cdiv(num_rows, rows),)](
                given,
                added,
                weight,
                out,
                total,
                num_rows,
                width,
                eps,
                offset,
                HAS_RESIDUAL=residual is not None,
                ROUNDS_FIRST=rounds_first,
                ROWS=rows,
                BLOCK=block,
                num_warps=num_warps,
            )
    return out, total


def launch_rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [1, N, T, H] and key [1, K, T, H] by cos and sin [1, T, R], in the layout that they have."""
    query, key = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, key))
    cos, sin = cos.contiguous(), sin.contiguous()
    outs = torch.empty_like(query), torch.empty_like(key)
    (_, num_heads, num_tokens, head_dim), num_kv_heads, width = query.shape, key.shape[1], cos.shape[-1]
    if num_tokens:
        blocks = triton.cdiv(num_heads, ROTATED_HEADS) + triton.cdiv(num_kv_heads, ROTATED_HEADS)
        tensors = (query, key, *outs)
        strides = [stride for one in tensors for stride in (one.stride(2), one.stride(1))]
        with torch.cuda.device_of(query):
            rotate_kernel[(num_tokens, blocks)](
                query,
                key,
                cos,
                sin,
                *outs,
                *strides,
                num_heads,
                num_kv_heads,
                head_dim,
                width,
                HEADS=ROTATED_HEADS,
                HALF=triton.next_power_of_2(max(1, width // 2)),
                REST=0 if width == head_dim else triton.next_power_of_2(head_dim - width),
                num_warps=4,
            )
    return outs


def launch_gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up, both [..., F]; rows may lie apart, as halves of one product do."""
    width = gate.shape[-1]
    gate_TF, up_TF = (
        one.reshape(-1, width) if one.stride(-1) == 1 else one.reshape(-1, width).contiguous()
        for one in (gate, up)
    )
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        with torch.cuda.device_of(gate):
            gated_kernel[(len(gate_TF), triton.cdiv(width, GATED_BLOCK))](
                gate_TF,
                up_TF,
                out,
                gate_TF.stride(0),
                up_TF.stride(0),
                width,
                ACTIVATION=activation,
                BLOCK=GATED_BLOCK,
                num_warps=4,
            )
    return out
