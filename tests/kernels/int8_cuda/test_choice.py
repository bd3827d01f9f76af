"""The choice of a backend: what is wrong is never used, the fastest of the rest is, measured once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from strata.kernels.int8_linear import choice as choice_module
from strata.kernels.int8_linear.backend import ProductRequest
from strata.kernels.int8_linear.blocked import IntMmBackend
from strata.kernels.int8_linear.choice import BackendChoice, Rates, measure_backends, mistake_of
from strata.kernels.int8_linear.floats import FloatBackend
from strata.kernels.int8_linear.quantize import Int8Activations, quantize_activations, quantize_weight
from strata.kernels.int8_linear.reference import int8_linear_reference

from ..int8_work import random_operands

ON_CPU = ProductRequest(device=torch.device("cpu"), dtype=torch.float32, num_outputs=48, num_inputs=64)
ON_CARD = replace(ON_CPU, device=torch.device("cuda:0"))


@dataclass
class OneOff:
    """Computes rightly, but for an output that it forgets."""

    name: str = "one off"

    def takes(self, request: ProductRequest) -> bool:
        return True

    def multiply(self, x: Int8Activations, *operands: object) -> torch.Tensor:
        found = IntMmBackend().multiply(x, *operands)  # type: ignore[arg-type]
        found[-1, -1] = 0
        return found


class Failing(OneOff):
    def multiply(self, x: Int8Activations, *operands: object) -> torch.Tensor:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nand a trace")


def test_a_wrong_backend_is_never_timed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timed: list[str] = []
    monkeypatch.setattr(
        choice_module, "time_backend", lambda backend, request: timed.append(backend.name) or 1.0
    )
    rates = measure_backends([OneOff(), Failing(name="failing"), IntMmBackend()], ON_CPU)
    assert timed == ["int_mm"]
    assert list(rates) == ["int_mm", "dense"]
    assert "one off is not used: its product is off by" in caplog.text
    assert "failing is not used: CUBLAS_STATUS_NOT_SUPPORTED" in caplog.text
    with pytest.raises(RuntimeError, match="no int8 backend multiplies float32 48x64 rightly"):
        measure_backends([OneOff()], ON_CPU)


def test_both_old_ways_are_right() -> None:
    for backend in (IntMmBackend(), FloatBackend()):
        assert mistake_of(backend, ON_CPU) == ""
    assert measure_backends([IntMmBackend()], ON_CPU)["int_mm"] > 0


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[ProductRequest]:
    """What is measured on a card that is faster in floats."""
    measured: list[ProductRequest] = []

    def measure(backends: object, request: ProductRequest) -> Rates:
        measured.append(request)
        return {"int_mm": 2e12, "float": 3e12, "dense": 4e12}

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(choice_module, "measure_backends", measure)
    return measured


def test_the_fastest_is_measured_once_a_card(card: list[ProductRequest]) -> None:
    told: list[tuple[str, str, Rates]] = []
    choice = BackendChoice(
        backends=(IntMmBackend(), FloatBackend()), on_measured=lambda *found: told.append(found)
    )
    for device in ("cuda:0", "cuda:0", "cuda:1"):
        assert choice.backend_for(replace(ON_CARD, device=torch.device(device))).name == "float"
    assert card == [ON_CARD]
    assert told == [("a card", "float32 48x64", {"int_mm": 2e12, "float": 3e12, "dense": 4e12})]


def test_what_was_kept_is_not_measured_again(card: list[ProductRequest]) -> None:
    rates = {"int_mm": 9e12, "float": 3e12, "dense": 9e13}
    kept: dict[tuple[str, str], Rates] = {("a card", "float32 48x64"): rates}
    choice = BackendChoice(backends=(IntMmBackend(), FloatBackend()), kept=kept)
    assert choice.backend_for(ON_CARD).name == "int_mm"
    assert card == []
    # A kernel that is no longer to be had: what was measured with it does not tell.
    # Nor does what was kept before dense products were measured.
    for number, old in enumerate(({"cuda": 9e13, "dense": 3e12}, {"int_mm": 9e13, "float": 3e12})):
        kept["a card", "float32 48x64"] = old
        assert BackendChoice(backends=choice.backends, kept=kept).backend_for(ON_CARD).name == "float"
        assert card == [ON_CARD] * (number + 1)


def test_a_card_without_memory_left(card: list[ProductRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(backends: object, request: ProductRequest) -> Rates:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(choice_module, "measure_backends", measure)
    choice = BackendChoice(backends=(IntMmBackend(), FloatBackend()))
    assert choice.backend_for(ON_CARD).name == "int_mm"
    assert not choice.kept


def test_nothing_is_measured_without_a_card(
    card: list[ProductRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = BackendChoice(backends=(IntMmBackend(), FloatBackend()))
    assert choice.backend_for(ON_CPU).name == "int_mm"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert choice.backend_for(ON_CARD).name == "int_mm"
    assert card == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_floats_are_the_definition(dtype: torch.dtype) -> None:
    x, weight, bias = random_operands((17, 40, 24), dtype)
    codes, scale = quantize_weight(weight)
    rounded = quantize_activations(x)
    assert rounded.outliers_TU is not None
    found = FloatBackend().multiply(rounded, codes, scale, bias, dtype)
    expected = int8_linear_reference(x, codes, scale, bias)
    magnitude = int8_linear_reference(x.abs(), codes.abs(), scale, bias.abs())
    # Both operands and the result are rounded to the dtype.
    assert ((found.double() - expected).abs() <= 2 * torch.finfo(dtype).eps * magnitude + 1e-6).all()
