"""Which backend multiplies int8 codes of a shape on a card: the fastest that is right, measured once.

Before a backend is timed its product of a small input is compared with the definition; one that is wrong is
never used. Where there is no card nothing is measured: the first that takes the request is used. Knows no
files: `kept` is filled, and `on_measured` called, by whoever keeps figures from one process to the next.
Legend: T tokens, N output channels, K input channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from time import perf_counter

import torch

from strata.kernels.int8_linear.backend import Int8Backend, ProductRequest
from strata.kernels.int8_linear.quantize import Int8Activations
from strata.kernels.int8_linear.registry import BACKENDS

TIMED_TOKENS = TIMED_OUTPUTS = 4096
"""Most of the product that is timed: they fill any card, and take 0.4 GB of it."""
ENOUGH_S = 0.02
MIN_ROUNDS = 3
CHECKED_TOKENS = 33
DISTINCT_ROWS = 61
DENSE = "dense"
"""Among rates: the product that int8 is there to spare, of two matrices in the dtype. It is no backend."""
LARGEST_ERROR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Norm of the difference from the definition over the result's: operands may be rounded to the dtype."""

logger = logging.getLogger(__name__)

Rates = Mapping[str, float]
"""Operations (multiplications and additions) a second, by backend and of `DENSE`."""


@dataclass(kw_only=True)
class BackendChoice:
    """The choice, remembered for the process.

    Attributes:
        backends: in order of preference where nothing is measured.
        kept: rates of earlier processes, by card and `ProductRequest.shape_name`.
        on_measured: told of a card, a shape's name and its rates, right after they were measured.
    """

    backends: Sequence[Int8Backend]
    kept: dict[tuple[str, str], Rates] = field(default_factory=dict)
    on_measured: Callable[[str, str, Rates], None] | None = None
    _chosen: dict[ProductRequest, Int8Backend] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def backend_for(self, request: ProductRequest) -> Int8Backend:
        """What multiplies; measured now, and waited for, where it never was."""
        if request.device.type != "cuda" or torch.version.cuda is None:
            return next(backend for backend in self.backends if backend.takes(request))
        with self._lock:
            if request not in self._chosen:
                self._chosen[request] = self._choose(request)
            return self._chosen[request]

    def _choose(self, request: ProductRequest) -> Int8Backend:
        takers = {backend.name: backend for backend in self.backends if backend.takes(request)}
        card = torch.cuda.get_device_name(request.device)
        rates = self.kept.get((card, request.shape_name), {})
        if DENSE not in rates or not rates.keys() - {DENSE} <= takers.keys():
            try:
                rates = measure_backends(list(takers.values()), request)
            except torch.OutOfMemoryError:
                logger.warning("int8 %s on %s: no memory left to measure in", request.shape_name, card)
                return next(iter(takers.values()))
            self.kept[card, request.shape_name] = rates
            if self.on_measured is not None:
                self.on_measured(card, request.shape_name, rates)
        chosen = takers[max(rates.keys() - {DENSE}, key=lambda name: rates[name])]
        logger.info("int8 %s on %s: %s of %s", request.shape_name, card, chosen.name, describe_rates(rates))
        return chosen


def describe_rates(rates: Rates) -> str:
    """One line."""
    return ", ".join(f"{name} {rate / 1e12:.1f} T/s" for name, rate in rates.items())


def measure_backends(backends: Sequence[Int8Backend], request: ProductRequest) -> Rates:
    """Rates of those that are right, each warmed up by its check, and of the dense product.

    Raises:
        RuntimeError: none is right.
    """
    rates = {}
    for backend in backends:
        mistake = mistake_of(backend, request)
        if mistake:
            logger.warning("int8 %s: %s is not used: %s", request.shape_name, backend.name, mistake)
        else:
            rates[backend.name] = time_backend(backend, request)
    if not rates:
        raise RuntimeError(f"no int8 backend multiplies {request.shape_name} rightly on {request.device}")
    return rates | {DENSE: time_dense(request)}


def over_dense(rates: Rates) -> float | None:
    """The fastest way to multiply codes over the dense product; None where either is not known."""
    of_codes = [rate for name, rate in rates.items() if name != DENSE]
    return max(of_codes) / rates[DENSE] if of_codes and DENSE in rates else None


def mistake_of(backend: Int8Backend, request: ProductRequest) -> str:
    """Why a backend is not to be used for a request; empty where its product is right."""
    x, codes_NK, scale_N = _operands(request, CHECKED_TOKENS)
    try:
        found_TN = backend.multiply(x, codes_NK, scale_N, None, request.dtype).double()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return str(error).splitlines()[0]
    x_TK = x.codes_TK.double() * x.scale_T.double()[:, None]
    expected_TN = x_TK @ (codes_NK.double() * scale_N.double()[:, None]).t()
    deviation = float((found_TN - expected_TN).norm() / expected_TN.norm())
    return "" if deviation <= LARGEST_ERROR[request.dtype] else f"its product is off by {deviation:.2g}"


def time_backend(backend: Int8Backend, request: ProductRequest) -> float:
    """Operations a second, of the fastest of some rounds."""
    request = _timed(request)
    x, codes_NK, scale_N = _operands(request, TIMED_TOKENS)
    return _rate(request, lambda: backend.multiply(x, codes_NK, scale_N, None, request.dtype))


def time_dense(request: ProductRequest) -> float:
    """Operations a second of the same product in the request's dtype, which nobody has to decode."""
    request = _timed(request)
    x, codes_NK, scale_N = _operands(request, TIMED_TOKENS)
    weight_NK = codes_NK.to(request.dtype).mul_(scale_N[:, None])
    hidden_TK = x.codes_TK.to(request.dtype).mul_(x.scale_T[:, None])
    return _rate(request, lambda: torch.nn.functional.linear(hidden_TK, weight_NK))


def _timed(request: ProductRequest) -> ProductRequest:
    return replace(request, num_outputs=min(request.num_outputs, TIMED_OUTPUTS))


def _rate(request: ProductRequest, multiply: Callable[[], torch.Tensor]) -> float:
    def run() -> float:
        started = perf_counter()
        multiply()
        if request.device.type == "cuda":
            torch.cuda.synchronize(request.device)
        return perf_counter() - started

    run()
    seconds: list[float] = []
    while len(seconds) < MIN_ROUNDS or sum(seconds) < ENOUGH_S:
        seconds.append(run())
    return 2 * TIMED_TOKENS * request.num_outputs * request.num_inputs / min(seconds)


def _operands(request: ProductRequest, num_tokens: int) -> tuple[Int8Activations, torch.Tensor, torch.Tensor]:
    """Random ones on the device, made on the CPU; rows come again, which no tile's size divides."""
    generator = torch.Generator().manual_seed(0)

    def codes(rows: int) -> torch.Tensor:
        size = (min(rows, DISTINCT_ROWS), request.num_inputs)
        distinct = torch.randint(-127, 128, size, dtype=torch.int8, generator=generator).to(request.device)
        return distinct.repeat(-(-rows // len(distinct)), 1)[:rows]

    def scale(rows: int) -> torch.Tensor:
        return (torch.rand(rows, generator=generator) / 127).to(request.device)

    x = Int8Activations(
        codes_TK=codes(num_tokens),
        scale_T=scale(num_tokens),
        outlier_columns=torch.empty(0, dtype=torch.int64, device=request.device),
        outliers_TU=None,
    )
    return x, codes(request.num_outputs), scale(request.num_outputs)


CHOICE = BackendChoice(backends=BACKENDS)
"""The process's."""
