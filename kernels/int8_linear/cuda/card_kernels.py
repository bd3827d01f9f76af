"""The CUDA kernels on a card: compiled for it, loaded, and compared with torch before anything else is done.

A kernel that is wrong is never used. Legend: T tokens, N outputs, K inputs, D width of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch

from strata.kernels.int8_linear.cuda.driver import Argument, LoadedKernels
from strata.kernels.int8_linear.cuda.nvrtc import KernelsUnavailableError, compile_kernels
from strata.kernels.int8_linear.cuda.source import ELEMENTS, GEMM_TILE, NUM_THREADS

OLDEST_CAPABILITY = (7, 5)
INPUTS_MULTIPLE = OUTPUTS_MULTIPLE = 16
"""What K and N have to be multiples of: rows are copied in pieces of 16 bytes."""
WIDTH_MULTIPLE = 4
"""What D has to be a multiple of."""
MULTIPLE_OF_ADDRESS = 16
"""Where codes have to begin."""
NAMES = ("int8_gemm", "quantize_rows")
CHECKED_SHAPE = (150, 272, 208)
"""T, N, K of the product that is compared with torch's: several tiles, none of them full."""

logger = logging.getLogger(__name__)


class Launcher(Protocol):
    """Launches kernels by name."""

    def launch(self, name: str, num_blocks: int, num_threads: int, arguments: Sequence[Argument]) -> None:
        """See `LoadedKernels.launch`."""


class CardKernels:
    """Both kernels on one card, for activations of one dtype."""

    def __init__(self, loaded: Launcher, dtype: torch.dtype) -> None:
        """Of kernels that were compiled for this dtype."""
        self._loaded, self._dtype = loaded, dtype

    def int8_gemm(
        self,
        codes_TK: torch.Tensor,
        scale_T: torch.Tensor,
        codes_NK: torch.Tensor,
        scale_N: torch.Tensor,
        bias_N: torch.Tensor | None,
        addend_TN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Product of codes times both scales, plus bias and addend; in float32, rounded once to the dtype.

        Args:
            codes_TK: int8, contiguous, K a multiple of 16; begins at a multiple of 16 bytes.
            scale_T: float32.
            codes_NK: int8, as codes_TK, N a multiple of 16.
            scale_N: float32.
            bias_N: of the dtype, or None.
            addend_TN: of the dtype, overwritten by the result; None for none.

        Returns:
            [T, N].
        """
        num_tokens, num_outputs = len(codes_TK), len(codes_NK)
        output = addend_TN
        if output is None:
            output = codes_TK.new_empty(num_tokens, num_outputs, dtype=self._dtype)
        if num_tokens:
            bias = None if bias_N is None else bias_N.to(self._dtype).contiguous()
            operands = (codes_TK, scale_T, codes_NK, scale_N, bias, addend_TN, output)
            num_blocks = -(-num_tokens // GEMM_TILE) * -(-num_outputs // GEMM_TILE)
            sizes = (num_tokens, num_outputs, codes_TK.shape[1])
            self._loaded.launch("int8_gemm", num_blocks, NUM_THREADS, (*operands, *sizes))
        return output

    def quantize_rows(
        self,
        x_TD: torch.Tensor,
        codes_TD: torch.Tensor,
        scale_T: torch.Tensor,
        is_skipped_D: torch.Tensor | None = None,
    ) -> None:
        """Fills int8 codes -127..127 and scales absmax / 127 of the rows of x, all contiguous.

        Columns whose byte in `is_skipped_D` (uint8) is not 0 get code 0 and count for no scale.
        """
        if len(x_TD):
            pointers = (x_TD, None, None, is_skipped_D, None, None, codes_TD, scale_T)
            self._loaded.launch("quantize_rows", len(x_TD), NUM_THREADS, (*pointers, x_TD.shape[1], 0.0))

    def norm_quantize_rows(
        self,
        x_TD: torch.Tensor,
        weight_D: torch.Tensor,
        epsilon: float,
        codes_TD: torch.Tensor,
        scale_T: torch.Tensor,
        residual_TD: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fills codes and scales of the RMSNorm of x, or of x + residual.

        Returns:
            What was rounded [T, D], and what was normalised [T, D]: x itself without a residual.
        """
        normed = torch.empty_like(x_TD)
        summed = x_TD if residual_TD is None else torch.empty_like(x_TD)
        if len(x_TD):
            target = None if residual_TD is None else summed
            pointers = (x_TD, residual_TD, weight_D, None, target, normed, codes_TD, scale_T)
            arguments = (*pointers, x_TD.shape[1], float(epsilon))
            self._loaded.launch("quantize_rows", len(x_TD), NUM_THREADS, arguments)
        return normed, summed


def card_kernels(device: torch.device, dtype: torch.dtype) -> CardKernels | None:
    """The kernels on a card, checked; None, and the reason in the log, where there are none that are right.

    The first call of a process for a card and a dtype takes a second or two and waits for the device.
    """
    if device.type != "cuda" or torch.version.cuda is None or dtype not in ELEMENTS:
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    return _card_kernels(torch.device("cuda", index), dtype)


@lru_cache(maxsize=64)
def _card_kernels(device: torch.device, dtype: torch.dtype) -> CardKernels | None:
    capability = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if capability < OLDEST_CAPABILITY:
        logger.info("%s is older than sm75: int8 without kernels of our own", name)
        return None
    try:
        loaded = LoadedKernels(compile_kernels(capability, dtype).cubin, device, NAMES)
        kernels = CardKernels(loaded, dtype)
        find_mistake = mistake_of(kernels, device, dtype)
    except (KernelsUnavailableError, RuntimeError) as error:
        logger.warning("int8 on %s without kernels of our own: %s", name, error)
        return None
    if find_mistake:
        logger.warning("int8 on %s without kernels of our own, which are wrong: %s", name, find_mistake)
        return None
    return kernels


def mistake_of(kernels: CardKernels, device: torch.device, dtype: torch.dtype) -> str:
    """What of the kernels differs from its definition in torch on a small input; empty where nothing does."""
    num_tokens, num_outputs, num_inputs = CHECKED_SHAPE
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_tokens, num_inputs, generator=generator).to(dtype)
    weight = torch.randint(-127, 128, (num_outputs, num_inputs), generator=generator, dtype=torch.int8)
    codes = torch.empty(num_tokens, num_inputs, dtype=torch.int8, device=device)
    scale = torch.empty(num_tokens, device=device)
    kernels.quantize_rows(x.to(device), codes, scale)
    expected_scale = x.float().abs().amax(dim=1) / 127
    expected_codes = (x.float() / expected_scale[:, None]).round()
    if not torch.allclose(scale.cpu(), expected_scale, rtol=1e-6, atol=0):
        return "quantize_rows: scales"
    if (codes.cpu().float() - expected_codes).abs().max() > 1:
        return "quantize_rows: codes"
    ones = torch.ones(max(num_tokens, num_outputs), device=device)
    small = ones[:num_tokens] / 2**20
    found = kernels.int8_gemm(codes, small, weight.to(device), ones[:num_outputs], None)
    # Powers of two: the product of codes is rounded once, to the dtype.
    product = (codes.cpu().double() @ weight.double().t()) / 2**20
    tolerance = torch.finfo(dtype).eps * product.abs() + torch.finfo(dtype).smallest_normal
    return "" if bool(((found.cpu().double() - product).abs() <= tolerance).all()) else "int8_gemm"
