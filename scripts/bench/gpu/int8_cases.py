"""int8 linears on a card: every way to compute them beside the definition in float64, and their rates.

Knows no model but its shapes. Legend: T tokens, N outputs, K inputs.
"""

from __future__ import annotations

import torch

from strata.engine.machine.card_products import keep_card_products
from strata.engine.plan.shapes import ModelShape
from strata.kernels.int8_linear.backend import ProductRequest
from strata.kernels.int8_linear.choice import DENSE, Rates, measure_backends
from strata.kernels.int8_linear.cuda.card_kernels import OLDEST_CAPABILITY, card_kernels
from strata.kernels.int8_linear.floats import FloatBackend
from strata.kernels.int8_linear.quantize import quantize_activations, quantize_weight
from strata.kernels.int8_linear.reference import int8_linear_reference
from strata.kernels.int8_linear.registry import BACKENDS

SHAPES = ((1, 16, 16), (35, 48, 80), (129, 144, 208), (1000, 528, 4112))
"""T, N, K."""
TINY_SHAPES = SHAPES[:3]
SPREADS = {"outlier columns": 3.0, "none apart": float("inf")}


def int8_errors(dtype: torch.dtype, device: torch.device, *, tiny: bool) -> dict[str, float]:
    """Norm of the difference from float64 over that of the result, by backend and case."""
    errors = {}
    for num_tokens, num_outputs, num_inputs in TINY_SHAPES if tiny else SHAPES:
        request = ProductRequest(device=device, dtype=dtype, num_outputs=num_outputs, num_inputs=num_inputs)
        for about, spread in SPREADS.items():
            case = f"{num_tokens}x{num_outputs}x{num_inputs}, {about}"
            for name, error in _errors(request, num_tokens, spread).items():
                errors[f"{name}, {case}"] = error
    return errors


def _errors(request: ProductRequest, num_tokens: int, spread: float) -> dict[str, float]:
    generator = torch.Generator().manual_seed(num_tokens)
    sizes = ((num_tokens, request.num_inputs), (request.num_outputs, request.num_inputs))
    x, weight = (torch.randn(size, generator=generator).to(request.dtype) for size in sizes)
    bias = torch.randn(request.num_outputs, generator=generator).to(request.dtype)
    x[:, 3] *= 20
    codes, scale = quantize_weight(weight)
    expected = int8_linear_reference(x, codes, scale, bias, spread)
    rounded = quantize_activations(x.to(request.device), spread)
    operands = (rounded, codes.to(request.device), scale.to(request.device), bias.to(request.device))
    found = {
        backend.name: backend.multiply(*operands, request.dtype)
        for backend in BACKENDS
        if backend.takes(request)
    }
    return {
        name: float((result.cpu().double() - expected).norm() / expected.norm())
        for name, result in found.items()
    }


def lacks_own_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether our kernels should be there and are not; the log says why."""
    is_old = torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY
    return torch.version.cuda is not None and not is_old and card_kernels(device, dtype) is None


def int8_rates(
    shape: ModelShape, dtype: torch.dtype, device: torch.device, *, keeps: bool
) -> dict[str, Rates]:
    """Operations a second by product and backend, floats included.

    Args:
        shape: whose matrices are multiplied.
        dtype: of activations.
        device: the card.
        keeps: they become what plans and runs on this card go by.
    """
    widths = {
        (shape.hidden_size, shape.hidden_size),
        (shape.intermediate_size, shape.hidden_size),
        (shape.hidden_size, shape.intermediate_size),
    }
    found = {}
    for num_outputs, num_inputs in sorted(widths):
        request = ProductRequest(device=device, dtype=dtype, num_outputs=num_outputs, num_inputs=num_inputs)
        takers = [backend for backend in BACKENDS if backend.takes(request)]
        found[request.shape_name] = measure_backends(takers, request)
        if keeps:
            card = torch.cuda.get_device_name(device)
            keep_card_products(card, request.shape_name, found[request.shape_name])
    return found


def best_of_codes(rates: Rates) -> float:
    """Of the ways that multiply codes as they are; 0 where there is none."""
    return max((rate for name, rate in rates.items() if name not in (DENSE, FloatBackend.name)), default=0.0)
