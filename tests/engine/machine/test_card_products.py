"""What is kept of a card's int8 products: one file a card, of one torch; what follows where nothing is."""

from __future__ import annotations

import pytest
import torch

from strata.engine.machine import card_products
from strata.engine.machine.card_products import (
    card_products_path,
    int8_over_float,
    keep_card_products,
    read_card_products,
    unmeasured_int8,
    use_kept_products,
)
from strata.engine.machine.profile import load_profile
from strata.engine.machine.provenance import provenance_of
from strata.kernels.int8_linear.choice import BackendChoice

T4 = "Tesla T4"
FAST = {"cuda": 4e13, "int_mm": 1.5e13, "float": 1.2e13, "dense": 2e13}
SLOW = {"int_mm": 1.5e13, "float": 1.2e13, "dense": 2e13}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_what_is_measured_is_kept(cache, monkeypatch):
    assert read_card_products(T4) == {}
    keep_card_products(T4, "float16 8192x8192", FAST)
    keep_card_products(T4, "float16 28672x8192", SLOW)
    keep_card_products("NVIDIA H100 80GB HBM3", "float16 8192x8192", SLOW)
    assert card_products_path(T4) == cache / "strata" / "cards" / "Tesla-T4.json"
    assert read_card_products(T4) == {"float16 8192x8192": FAST, "float16 28672x8192": SLOW}
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert read_card_products(T4) == {}


@pytest.mark.parametrize("content", ["", "{}", '{"measured_on": 3, "op_per_s": {}}'])
def test_a_damaged_file_is_not_used(content, caplog):
    path = card_products_path(T4)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with caplog.at_level("INFO"):
        assert read_card_products(T4) == {}
    assert "kept rates of a card are not used" in caplog.text
    keep_card_products(T4, "float16 8192x8192", FAST)
    assert read_card_products(T4) == {"float16 8192x8192": FAST}


def test_the_choice_begins_with_what_is_kept(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: T4)
    keep_card_products(T4, "float16 8192x8192", FAST)
    choice = BackendChoice(backends=())
    use_kept_products(("cuda:0", "cuda:1"), choice)
    assert choice.kept == {(T4, "float16 8192x8192"): FAST}
    assert choice.on_measured is keep_card_products
    on_cpu = BackendChoice(backends=())
    use_kept_products(("cpu",), on_cpu)
    assert on_cpu.on_measured is None


def test_nothing_is_known_of_a_card_that_was_never_measured():
    assert int8_over_float(T4) is None
    assert str(unmeasured_int8([T4, T4])).startswith("int8 was never measured on Tesla T4 with torch")
    keep_card_products(T4, "float16 8192x8192", FAST)
    assert int8_over_float(T4) == 2.0
    assert unmeasured_int8([T4]) is None
    keep_card_products(T4, "float16 28672x8192", SLOW)
    keep_card_products(T4, "float16 8192x28672", SLOW)
    assert int8_over_float(T4) == 0.75


@pytest.mark.parametrize("rates", [{"dense": 2e13}, {"int_mm": 4e13, "float": 2e13}])
def test_half_of_a_comparison_is_none(rates):
    """Floats that are decoded from codes are slower than those that a run without int8 multiplies."""
    keep_card_products(T4, "float16 8192x8192", rates)
    assert int8_over_float(T4) is None


@pytest.mark.parametrize("name", ["kaggle-2xt4", "h100", "card-24gb"])
def test_shipped_cards(name):
    """None of these has run int8: no profile says that it was measured, and auto never takes it."""
    profile = load_profile(name)
    assert all(provenance_of(profile, way) in ("assumed", "reported") for way in profile.compute)
    assert provenance_of(profile, "int8") == "assumed"
    for stored in (torch.float16, torch.bfloat16):
        assert profile.resolve_dtype(stored) != "int8"


def test_a_card_that_was_measured():
    """int8 is no faster than bfloat16 on it, and was measured to be so."""
    profile = load_profile("h200")
    ways = {way: provenance_of(profile, way) for way in profile.compute}
    assert ways == {"float32": "measured", "bfloat16": "measured", "float16": "assumed", "int8": "measured"}
    rates = {way: profile.compute[way].layer.linear_flop_per_s for way in ("bfloat16", "int8")}
    assert rates["int8"] < rates["bfloat16"]


def test_a_path_that_cannot_be_written_is_told(monkeypatch, tmp_path, caplog):
    blocked = tmp_path / "strata"
    blocked.write_text("")
    with caplog.at_level("INFO", card_products.__name__):
        keep_card_products(T4, "float16 8192x8192", FAST)
    assert "rates of a card are not kept" in caplog.text
