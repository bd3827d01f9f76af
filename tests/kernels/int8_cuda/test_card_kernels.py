"""What calls the CUDA kernels: the kernels, run on the CPU, beside the linear's definition in float64."""

from __future__ import annotations

import pytest
import torch

from strata.kernels.int8_linear import quantize
from strata.kernels.int8_linear.cuda import backend as cuda_backend
from strata.kernels.int8_linear.cuda import card_kernels as card_module
from strata.kernels.int8_linear.cuda.backend import CudaBackend
from strata.kernels.int8_linear.cuda.card_kernels import NAMES, CardKernels, card_kernels, mistake_of
from strata.kernels.int8_linear.cuda.driver import LoadedKernels
from strata.kernels.int8_linear.cuda.nvrtc import compile_kernels
from strata.kernels.int8_linear.quantize import quantize_activations, quantize_weight
from strata.kernels.int8_linear.reference import int8_linear_reference

from ..int8_work import INFINITY, random_operands
from .conftest import Emulate
from .test_emulated_gemm import SOURCE

CPU = torch.device("cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHAPE = (35, 128, 48)
"""T, K, N."""


@pytest.mark.parametrize("spread", [3.0, INFINITY], ids=["outliers", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear(emulate: Emulate, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, spread: float) -> None:
    kernels = CardKernels(emulate(75, dtype), dtype)
    monkeypatch.setattr(cuda_backend, "card_kernels", lambda *asked: kernels)
    x, weight, bias = random_operands(SHAPE, dtype)
    codes, scale = quantize_weight(weight)
    rounded = quantize_activations(x, spread)
    assert (rounded.outliers_TU is None) == (spread == INFINITY)
    found = CudaBackend().multiply(rounded, codes, scale, bias, dtype)
    expected = int8_linear_reference(x, codes, scale, bias, spread)
    magnitude = int8_linear_reference(x.abs(), codes.abs(), scale, bias.abs(), spread)
    # Outlier columns: weight and product rounded to the dtype; then all of it once.
    assert ((found.double() - expected).abs() <= 2 * torch.finfo(dtype).eps * magnitude + 1e-6).all()


@pytest.mark.parametrize("skips", [False, True])
def test_rows_are_rounded_by_the_kernel(
    emulate: Emulate, monkeypatch: pytest.MonkeyPatch, skips: bool
) -> None:
    x, weight, _ = random_operands((9, 128, 24), torch.float16)
    spread = 3.0 if skips else INFINITY
    expected, expected_weight = quantize_activations(x, spread), quantize_weight(weight)
    calls = []
    kernels = CardKernels(emulate(75, torch.float16), torch.float16)
    monkeypatch.setattr(quantize, "card_kernels", lambda *asked: calls.append(asked) or kernels)
    found = quantize_activations(x, spread)
    assert torch.equal(found.codes_TK, expected.codes_TK)
    assert torch.equal(found.scale_T, expected.scale_T)
    assert torch.equal(quantize_weight(weight)[0], expected_weight[0])
    assert len(calls) == 2


@pytest.mark.gpu
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_t4_runs_is_right_on_any_card(dtype: torch.dtype) -> None:
    device = torch.device("cuda:0")
    compiled = compile_kernels(torch.cuda.get_device_capability(device), dtype, "-DCOMPUTES_AS=750")
    kernels = CardKernels(LoadedKernels(compiled.cubin, device, NAMES), dtype)
    assert mistake_of(kernels, device, dtype) == ""


def test_norm_and_residual(emulate: Emulate) -> None:
    kernels = CardKernels(emulate(80, torch.float32), torch.float32)
    x, residual = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    codes, scale = torch.empty(5, 64, dtype=torch.int8), torch.empty(5)
    weight = torch.linspace(0.5, 2, 64)
    normed, total = kernels.norm_quantize_rows(x, weight, 1e-5, codes, scale, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, torch.nn.functional.rms_norm(x + residual, (64,), weight, 1e-5))
    torch.testing.assert_close(codes * scale[:, None], normed, rtol=0, atol=float(scale.max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_right_kernels_pass_their_check(emulate: Emulate, dtype: torch.dtype) -> None:
    assert mistake_of(CardKernels(emulate(75, dtype), dtype), CPU, dtype) == ""


WRONG = {
    "int8_gemm": ("first + lane / 8 % 2", "first + 1 - lane / 8 % 2"),
    "quantize_rows: scales": ("CODE_MAX = 127.0f", "CODE_MAX = 126.0f"),
    "quantize_rows: codes": ("round_half_even(to_float", "round_half_even(2 * to_float"),
}


@pytest.mark.parametrize("told", WRONG)
def test_wrong_kernels_do_not(emulate: Emulate, told: str) -> None:
    old, new = WRONG[told]
    assert SOURCE.count(old) == 1
    kernels = CardKernels(emulate(75, torch.float16, SOURCE.replace(old, new)), torch.float16)
    assert mistake_of(kernels, CPU, torch.float16) == told


@pytest.mark.parametrize("capability", [(6, 1), (7, 5)])
def test_cards_without_kernels_say_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: tuple[int, int]
) -> None:
    """Here there is no driver, and perhaps no compiler: either is a reason."""
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    card_module._card_kernels.cache_clear()
    with caplog.at_level("INFO"):
        assert card_kernels(torch.device("cuda:0"), torch.float16) is None
    card_module._card_kernels.cache_clear()
    assert ("older than sm75" if capability == (6, 1) else "int8 on a card without kernels") in caplog.text


def test_no_card_no_kernels() -> None:
    assert card_kernels(CPU, torch.float16) is None
