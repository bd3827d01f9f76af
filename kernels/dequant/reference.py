"""The oracle: every format decoded one weight at a time from its definition. Slow, for tests only.

All functions return float64 [N, K], in which every product here is exact; round it to float32, then to the
dtype under test, to get what a decoder must give bit for bit. Words, bytes and bits are counted from the low
end.
"""

from __future__ import annotations

import torch

from strata.kernels.dequant.parts import GptqParts, PackedParts


def field(words: list[int], index: int, bits: int) -> int:
    """The index-th field of `bits` bits in a row of 32-bit words."""
    word = words[index * bits // 32] & 0xFFFFFFFF
    return word >> (index * bits % 32) & (1 << bits) - 1


def reference_channels(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """codes[n, k] * scale[n], for integer or float8 codes [N, K] and scale [N] or [N, 1]."""
    return codes.double() * scale.double().reshape(-1, 1)


def reference_fp8_blocks(
    codes: torch.Tensor, scale_inv: torch.Tensor, block_size: tuple[int, int]
) -> torch.Tensor:
    """codes[n, k] * scale_inv[n // b0, k // b1]."""
    weight = codes.double()
    for n in range(weight.shape[0]):
        for k in range(weight.shape[1]):
            weight[n, k] *= scale_inv[n // block_size[0], k // block_size[1]].double()
    return weight


def reference_4bit(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    quant_map: torch.Tensor,
    blocksize: int,
    shape: tuple[int, int],
) -> torch.Tensor:
    """quant_map[code] * absmax[i // blocksize] for weight i of the flattened [N, K], high half first."""
    data, values, scales = packed.flatten().tolist(), quant_map.tolist(), absmax.tolist()
    weights = []
    for i in range(shape[0] * shape[1]):
        code = data[i // 2] >> 4 if i % 2 == 0 else data[i // 2] & 15
        weights.append(values[code] * scales[i // blocksize])
    return torch.tensor(weights, dtype=torch.float64).view(shape)


def reference_gptq(stored: GptqParts, g_idx: list[int]) -> torch.Tensor:
    """(code(k, n) - zero(g, n)) * scales[g, n] with g = g_idx[k]; zero fields are larger by `zero_offset`."""
    bits, scales = stored.bits, stored.scales
    columns = stored.qweight.t().tolist()
    one_each = sum(stored.zero_offset << shift for shift in range(0, 32, bits))
    zero_rows = [[word + one_each for word in row] for row in stored.qzeros.tolist()]
    weight = torch.empty(scales.shape[1], len(g_idx), dtype=torch.float64)
    for n in range(weight.shape[0]):
        for k, g in enumerate(g_idx):
            steps = field(columns[n], k, bits) - field(zero_rows[g], n, bits)
            weight[n, k] = steps * scales[g, n].double()
    return weight


def reference_awq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, group_size: int
) -> torch.Tensor:
    """As GPTQ with words along N: nibble i of a word is output channel (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
    nibble_of_channel = {channel: i for i, channel in enumerate((0, 2, 4, 6, 1, 3, 5, 7))}
    code_rows, zero_rows = qweight.tolist(), qzeros.tolist()
    weight = torch.empty(scales.shape[1], qweight.shape[0], dtype=torch.float64)
    for n in range(weight.shape[0]):
        index = n // 8 * 8 + nibble_of_channel[n % 8]
        for k in range(weight.shape[1]):
            g = k // group_size
            steps = field(code_rows[k], index, 4) - field(zero_rows[g], index, 4)
            weight[n, k] = steps * scales[g, n].double()
    return weight


def reference_packed(stored: PackedParts, g_idx: list[int]) -> torch.Tensor:
    """(code - zero) * scale[n, g_idx[k]]; codes packed along K, zeros along N, or 2^(bits - 1) without."""
    bits, scale, zero_point = stored.bits, stored.scale, stored.zero_point
    rows = stored.packed.tolist()
    zero_columns = None if zero_point is None else zero_point.t().tolist()
    weight = torch.empty(scale.shape[0], len(g_idx), dtype=torch.float64)
    for n in range(weight.shape[0]):
        for k, g in enumerate(g_idx):
            zero = 1 << bits - 1 if zero_columns is None else field(zero_columns[g], n, bits)
            weight[n, k] = (field(rows[n], k, bits) - zero) * scale[n, g].double()
    return weight
