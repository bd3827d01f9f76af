"""What is computed in, decided by a measurement: injected ones of two machines, and this machine's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from strata.engine.machine import machine as machine_module
from strata.engine.machine import product_rates as rates_module
from strata.engine.machine.devices import resolve_dtype
from strata.engine.machine.machine import StoredModel, choose_machine
from strata.engine.machine.product_rates import ProductRates, measure_product_rates, read_product_rates
from strata.engine.machine.settings import MachineSettings
from strata.engine.types import InputError

MODERN = ProductRates(flop_per_s={"float32": 1e11, "bfloat16": 4e11, "int8": 6e11})
AVX2 = ProductRates(flop_per_s={"float32": 1.4e11, "bfloat16": 7e9, "int8": 6e9})


@pytest.fixture
def set_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[ProductRates], None]:
    """Makes this machine another one."""
    return lambda rates: monkeypatch.setattr(rates_module, "_product_rates", lambda *where: rates)


@pytest.fixture(scope="module")
def stored(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16."""
    plain, folder = checkpoint("llama-gqa"), tmp_path_factory.mktemp("stored") / "bfloat16"
    AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return folder


def scores_of(run) -> np.ndarray:
    return np.concatenate([row.scores for row in run.scores])


@pytest.mark.parametrize(("machine", "fast"), [(MODERN, torch.bfloat16), (AVX2, torch.float32)])
def test_auto_is_the_faster_float(machine, fast, set_machine):
    set_machine(machine)
    for stored in (torch.bfloat16, torch.float16):
        assert resolve_dtype("auto", stored, ("cpu",)) == fast
    assert resolve_dtype("int8", torch.float32, ("cpu",)) == fast
    assert resolve_dtype("auto", torch.float32, ("cpu",)) == torch.float32
    assert resolve_dtype("bfloat16", torch.float32, ("cpu",)) == torch.bfloat16


def test_a_tie_goes_to_float32():
    tie = ProductRates(flop_per_s={"float32": 1e11, "bfloat16": 1e11, "int8": 1e11})
    assert tie.fastest_float == "float32"
    assert tie.int8_is_fast


def test_slow_int8_becomes_the_fast_float_with_a_warning(stored, score, set_machine, capfd):
    set_machine(AVX2)
    run = score(model=stored, dtype="int8", progress=True)
    shown = capfd.readouterr().err
    plan, messages = run.record["plan"], run.record["warnings"]["messages"]
    assert (plan["linear"], plan["dtype"]) == ("dense", "float32")
    assert plan["product_flop_per_s"] == AVX2.flop_per_s
    assert any("--dtype int8" in line and "computed in float32" in line for line in messages)
    assert "computing in float32 (measured: float32 140, bfloat16 7, int8 6 GFLOP/s a thread)" in shown
    assert "warning: --dtype int8" in shown
    assert "int8_check" not in run.record["measured"]
    np.testing.assert_array_equal(scores_of(run), scores_of(score(model=stored, dtype="float32")))


def test_fast_int8_stays(stored, score, set_machine, capfd):
    set_machine(MODERN)
    run = score(model=stored, dtype="int8", progress=True)
    plan = run.record["plan"]
    assert (plan["linear"], plan["dtype"]) == ("int8", "bfloat16")
    assert not any("--dtype int8" in line for line in run.record["warnings"]["messages"])
    assert "computing in int8 (measured:" in capfd.readouterr().err


@pytest.mark.parametrize(("first", "then", "dtype"), [(MODERN, AVX2, "bfloat16"), (AVX2, MODERN, "float32")])
@pytest.mark.parametrize("setting", ["auto", "int8"])
def test_a_resumed_run_keeps_what_it_began_in(
    setting, first, then, dtype, stored, score, set_machine, tmp_path
):
    out = tmp_path / "out"
    set_machine(first)
    begun = score(model=stored, dtype=setting, out=out).record["plan"]
    set_machine(then)
    resumed = score(model=stored, dtype=setting, out=out, resume=True).record["plan"]
    assert resumed["dtype"] == begun["dtype"] == dtype
    assert resumed["linear"] == begun["linear"]
    assert resumed["product_flop_per_s"] == first.flop_per_s


def test_a_broken_record_is_one_line(stored, score, tmp_path):
    out = tmp_path / "out"
    score(model=stored, dtype="auto", out=out)
    record = json.loads((out / "run.json").read_text())
    record["plan"]["product_flop_per_s"]["int8"] = -1.0
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"run.json: plan.*int8") as caught:
        score(model=stored, dtype="auto", out=out, resume=True)
    assert "\n" not in str(caught.value)


def test_what_measuring_takes_is_no_less_memory_for_the_run(stored, monkeypatch, fixed_rates):
    """torch keeps a card's memory that was used once, and the driver does not call it free."""
    order = []
    for name in ("device_budget_bytes", "measure_rates"):
        real = getattr(machine_module, name)
        monkeypatch.setattr(
            machine_module, name, lambda *asked, name=name, real=real: order.append(name) or real(*asked)
        )
    facts = StoredModel(dtype=torch.float32, hidden_size=32, file=stored / "model.safetensors")
    choose_machine(MachineSettings(devices="cpu"), facts)
    assert order == ["device_budget_bytes", "measure_rates"]


def test_nothing_is_measured_where_a_dtype_is_given(stored, set_machine, fixed_rates):
    set_machine(AVX2)
    facts = StoredModel(dtype=torch.bfloat16, hidden_size=32, file=stored / "model.safetensors")
    machine = choose_machine(MachineSettings(devices="cpu", dtype="bfloat16"), facts)
    assert (machine.dtype, machine.products, machine.notice) == (torch.bfloat16, None, "")


def test_this_machine_is_measured_in_every_way():
    found = measure_product_rates().flop_per_s
    assert list(found) == ["float32", "bfloat16", "int8"]
    assert all(1e7 < rate < 1e16 for rate in found.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept["measured_on"].update(num_threads=999),
        lambda kept: kept["measured_on"].update(ONEDNN_MAX_CPU_ISA="AVX2"),
        lambda kept: kept["flop_per_s"].pop("int8"),
        lambda kept: kept["flop_per_s"].update(float32="fast"),
        lambda kept: kept.clear(),
    ],
)
def test_kept_rates_hold_for_the_same_machine_alone(change, tmp_path):
    path, here = tmp_path / "products.json", {"num_threads": 1, "ONEDNN_MAX_CPU_ISA": None}
    kept = {"measured_on": dict(here), "flop_per_s": dict(AVX2.flop_per_s)}
    path.write_text(json.dumps(kept))
    assert read_product_rates(path, here) == AVX2
    change(kept)
    path.write_text(json.dumps(kept))
    assert read_product_rates(path, here) is None


def test_this_machine_is_measured_once(tmp_path, forks):
    code = (
        "import torch\n"
        "from strata.engine.machine import product_rates as rates\n"
        "torch.set_num_threads(1)\n"
        "rates.STEADY = 1e9\n"
        "{change}\n"
        "print(sorted(rates.product_rates().flop_per_s.items()))\n"
    )

    def run(change: str) -> str:
        done = forks.run(code.format(change=change), environment={"XDG_CACHE_HOME": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("")
    assert (tmp_path / "strata" / "products.json").is_file()
    assert run("rates.measure_product_rates = None") == first


def test_int8_may_be_wanted_on_any_account(stored, fixed_rates):
    assert AVX2.with_int8().int8_is_fast
    assert AVX2.with_int8().fastest_float == "float32"
    assert MODERN.with_int8() == MODERN
    facts = StoredModel(dtype=torch.bfloat16, hidden_size=32, file=stored / "model.safetensors")
    settings = MachineSettings(devices="cpu", dtype="int8")
    assert choose_machine(settings, facts, products=AVX2).linear == "dense"
    assert choose_machine(settings, facts, products=AVX2.with_int8()).linear == "int8"


def test_a_little_slower_is_no_reason_to_give_int8_up():
    nearly = ProductRates(flop_per_s={"float32": 1e11, "bfloat16": 1e10, "int8": 0.9e11})
    assert nearly.int8_is_fast


def test_what_is_measured_on_a_busy_machine_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(rates_module, "STEADY", 0.0)
    path = tmp_path / "products.json"
    measured = rates_module.measure_product_rates()
    assert not measured.is_steady
    monkeypatch.setattr(rates_module, "measure_product_rates", lambda: measured)
    assert rates_module.decide_product_rates(path, {}) == measured
    assert not path.exists()
    monkeypatch.setattr(rates_module, "measure_product_rates", lambda: AVX2)
    assert rates_module.decide_product_rates(path, {}) == AVX2
    assert read_product_rates(path, {}) == AVX2
