"""Encodes weights as NF4 and their block scales as dynamic 8-bit codes, as bitsandbytes stores them."""

from __future__ import annotations

import torch

from strata.kernels.dequant.blocks import COMPUTE_DTYPES, block_elements

# fmt: off
NF4_QUANT_MAP = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
"""The value of each NF4 code, float32 [16]. Source: Dettmers et al. 2023, QLoRA, appendix E."""
# fmt: on

TINY = 1e-38
"""Stands in for the scale of a block of zeros where a division needs one."""


def quantize_nf4(weight: torch.Tensor, blocksize: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest NF4 code of every weight over its block's largest magnitude; ties go to the lower code.

    Args:
        weight: [N, K] float32, bfloat16 or float16.
        blocksize: consecutive weights that share a scale, a positive even number.

    Returns:
        Codes, uint8 [ceil(N * K / 2), 1], the earlier weight in the high half; scales, float32
        [ceil(N * K / blocksize)]. Both bit-identical to bitsandbytes.functional.quantize_4bit on CPU.

    Raises:
        ValueError: another dtype or blocksize.

    Source: Dettmers et al. 2023, QLoRA, section 3.
    """
    if weight.dtype not in COMPUTE_DTYPES:
        raise ValueError(f"weight is {weight.dtype}, expected float32, bfloat16 or float16")
    if blocksize <= 0 or blocksize % 2:
        raise ValueError(f"blocksize is {blocksize}, expected a positive even number")
    flat = weight.reshape(-1)
    packed = torch.empty(-(-flat.numel() // 2), dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(-(-flat.numel() // blocksize), dtype=torch.float32, device=weight.device)
    step = max(1, block_elements(weight.device) // blocksize) * blocksize
    parts = zip(flat.split(step), packed.split(step // 2), absmax.split(step // blocksize), strict=True)
    for flat_part, packed_part, absmax_part in parts:
        codes = _quantize_blocks(flat_part.float(), NF4_QUANT_MAP.to(weight.device), blocksize, absmax_part)
        packed_part.copy_(_pack_nibbles(codes))
    return packed[:, None], absmax


def quantize_absmax(
    absmax: torch.Tensor, nested_blocksize: int = 256
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Block scales as 8-bit codes: the nearest dynamic code of scale - mean over its block's largest.

    bitsandbytes' CUDA and plain torch kernels choose the nearest code too. Its CPU kernel looks the code up
    in a table of 65,536 cells, so it may take the next code where two are equally near to within 2^-16.

    Args:
        absmax: float32 [num_blocks].
        nested_blocksize: scales that share a nested scale.

    Returns:
        Codes uint8 [num_blocks]; quant_map float32 [256]; nested_absmax float32
        [ceil(num_blocks / nested_blocksize)]; offset, a float32 number.

    Source: Dettmers et al. 2023, QLoRA, section 3, double quantization.
    """
    quant_map = build_dynamic_map().to(absmax.device)
    offset = absmax.mean()
    nested_absmax = absmax.new_empty(-(-absmax.numel() // nested_blocksize))
    codes = _quantize_blocks(absmax - offset, quant_map, nested_blocksize, nested_absmax)
    return codes, quant_map, nested_absmax, offset.item()


def build_dynamic_map() -> torch.Tensor:
    """The signed 8-bit dynamic data type: float32 [256], ascending, from -0.993 to 1.

    For every exponent e of 0 to 6, the centres of 2^e equal parts of [0.1, 1], times 10^(e - 6), with both
    signs; and 0 and 1 besides.

    Source: Dettmers 2016, 8-Bit Approximations for Parallelism in Deep Learning, arXiv 1511.04561.
    """
    magnitudes = []
    for exponent in range(7):
        edges = torch.linspace(0.1, 1.0, 2**exponent + 1, dtype=torch.float32)
        magnitudes.append((edges[1:] + edges[:-1]) / 2 * 10.0 ** (exponent - 6))
    positive = torch.cat(magnitudes)
    return torch.cat((positive, -positive, torch.tensor([0.0, 1.0]))).sort().values


def _quantize_blocks(
    flat: torch.Tensor, quant_map: torch.Tensor, blocksize: int, absmax: torch.Tensor
) -> torch.Tensor:
    """Codes (uint8, flat) nearest to flat / absmax of its block; fills `absmax`.

    Whole blocks are multiplied by the reciprocal and a last partial block is divided, as bitsandbytes does.
    """
    num_whole = flat.numel() // blocksize
    blocks = flat[: num_whole * blocksize].view(-1, blocksize)
    rest = flat[num_whole * blocksize :]
    torch.amax(blocks.abs(), dim=1, out=absmax[:num_whole])
    scaled = torch.empty_like(flat)
    scaled[: blocks.numel()] = (blocks * absmax[:num_whole, None].clamp(min=TINY).reciprocal()).flatten()
    if rest.numel():
        absmax[num_whole] = rest.abs().amax().clamp(min=TINY)
        scaled[blocks.numel() :] = rest / absmax[num_whole]
    midpoints = (quant_map[1:] + quant_map[:-1]) / 2
    return _count_below(midpoints, scaled.clamp_(-1, 1))


def _count_below(midpoints: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """For every value the number of midpoints below it, uint8.

    For the 15 of NF4, comparing with each is several times as fast as torch's binary search, which besides
    opens an OpenMP region for as few as 200 values.
    """
    if midpoints.numel() > 15:
        return torch.bucketize(values, midpoints, out_int32=True).to(torch.uint8)
    codes = torch.zeros_like(values, dtype=torch.uint8)
    above = torch.empty_like(values, dtype=torch.bool)
    for midpoint in midpoints.tolist():
        codes += torch.gt(values, midpoint, out=above).view(torch.uint8)
    return codes


def _pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Two codes a byte, the earlier one high; an odd last one is paired with the code of zero."""
    if codes.numel() % 2:
        codes = torch.cat((codes, codes.new_tensor([7])))
    return (codes[::2] << 4) | codes[1::2]
