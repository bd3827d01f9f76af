"""Profiles: files that come back as they went, shipped ones that load, and when a calibration is used."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from strata.engine.machine import profile as machine_profile
from strata.engine.machine.profile import (
    ComputeRates,
    MachineDescription,
    MachineProfile,
    calibrated_path,
    describe_machine,
    load_profile,
    measure_rates,
    read_profile,
    save_profile,
)
from strata.engine.machine.rates import LayerRates, MachineRates
from strata.engine.machine.shipped import SHIPPED
from strata.engine.types import InputError

LAYER = LayerRates(linear_flop_per_s=4e11, attention_flop_per_s=3e11, call_s=1e-3, masked_keys=64.0)
PROFILE = MachineProfile(
    name="here",
    date="2026-01-02T03:04:05+00:00",
    device_kind="cpu",
    num_devices=1,
    device_memory_bytes=1 << 34,
    host_memory_bytes=1 << 34,
    machine=MachineDescription(cpu="a", num_cores=2, num_threads=1),
    compute={
        "float32": ComputeRates(gemm_flop_per_s=2e11, layer=LAYER),
        "bfloat16": ComputeRates(gemm_flop_per_s=5e11, layer=LAYER),
    },
    disk_bytes_per_s=1e9,
    host_bytes_per_s=8e9,
    decode_weights_per_s={"nf4": 1e9},
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's calibration."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the quick measurement, and for that of the disk."""
    rates = MachineRates(gemm_flop_per_s=1e10, disk_bytes_per_s=5e8)
    monkeypatch.setattr(machine_profile, "measure_quickly", lambda *arguments: rates)
    monkeypatch.setattr(machine_profile, "measure_disk_rate", lambda file: 7e8)


def rates_for(
    file: Path, dtype: torch.dtype = torch.bfloat16, devices=("cpu",), linear="dense"
) -> MachineRates:
    return measure_rates(devices, dtype, 64, file, linear)


def test_a_profile_comes_back_as_it_was_saved(tmp_path):
    save_profile(PROFILE, tmp_path / "deep" / "machine.json")
    assert read_profile(tmp_path / "deep" / "machine.json") == PROFILE
    # JSON knows no infinity: what costs nothing is left out.
    assert "Infinity" not in (tmp_path / "deep" / "machine.json").read_text()


SHIPPED_NAMES = ["kaggle-2xt4", "card-24gb", "h100", "h200", "cpu-zen4", "cpu-avx2"]


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_shipped_profiles_load_under_their_own_names_and_say_where_figures_come_from(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.source
    assert profile.rates(profile.resolve_dtype(torch.float16), "int8").rates_from == f"profile {name}"


def test_every_shipped_file_is_tested():
    assert {path.stem for path in SHIPPED.glob("*.json")} == set(SHIPPED_NAMES)


def test_the_former_name_of_a_profile_works_and_says_what_it_is():
    profile = load_profile("cpu")
    assert profile.compute == load_profile("cpu-zen4").compute
    said = profile.rates("float32", "dense").rates_from
    assert said == "profile cpu-zen4 (--profile cpu means this one; there is cpu-avx2, too)"


def test_a_cpu_without_bfloat16_computes_in_float32():
    profile = load_profile("cpu-avx2")
    assert profile.resolve_dtype(torch.bfloat16) == "float32"
    assert profile.compute["int8"].gemm_flop_per_s < profile.compute["float32"].gemm_flop_per_s


def test_two_t4_are_what_the_design_says():
    profile = load_profile("kaggle-2xt4")
    assert profile.devices == ("cuda:0", "cuda:1")
    assert profile.compute["float16"].layer.linear_flop_per_s == 20e12
    assert 126e6 <= profile.disk_bytes_per_s <= 164e6
    # No bfloat16 on a T4, whatever the checkpoint is stored in.
    assert profile.resolve_dtype(torch.bfloat16) == "float16"


def test_workers_share_the_cores():
    one = PROFILE.rates("bfloat16", "dense")
    two = one.shared_by(2)
    assert two.gemm_flop_per_s == one.gemm_flop_per_s / 2
    assert two.layer == LAYER.shared_by(2)
    assert two.layer.linear_flop_per_s == 2e11
    assert two.layer.call_s == 2e-3
    assert two.layer.softmax_scores_per_s == math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 3}, "speed"),
        ({"name": None}, "name"),
        ({"num_devices": 10**9}, "num_devices"),
        ({"disk_bytes_per_s": "1"}, "disk_bytes_per_s"),
        ({"disk_bytes_per_s": -1.0}, "positive"),
        ({"device_kind": "tpu"}, "tpu"),
        ({"device_kind": "cuda"}, "host_to_device_bytes_per_s"),
        (
            {"compute": {"float32": {"gemm_flop_per_s": 1.0, "layer": {"linear_flop_per_s": 1.0}}}},
            "attention",
        ),
        ({"compute": {"float32": {}}}, "gemm_flop_per_s"),
        ({"machine": {}}, "cpu"),
        ({"decode_weights_per_s": {"nf4": 0.0}}, "positive"),
    ],
)
def test_a_file_that_is_no_profile_is_named(change, message, tmp_path):
    save_profile(PROFILE, tmp_path / "machine.json")
    content = json.loads((tmp_path / "machine.json").read_text()) | change
    (tmp_path / "machine.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"machine\.json: not a machine profile: .*{message}"):
        read_profile(tmp_path / "machine.json")


def test_text_that_is_no_json_is_named(tmp_path):
    (tmp_path / "machine.json").write_text("{")
    with pytest.raises(InputError, match=r"machine\.json: cannot be read as JSON"):
        load_profile(str(tmp_path / "machine.json"))


def test_an_unknown_name_lists_the_known_ones():
    known = "card-24gb, cpu-avx2, cpu-zen4, h100, h200, kaggle-2xt4"
    with pytest.raises(InputError, match=rf"--profile: 'kagle' is unknown; expected one of {known}"):
        load_profile("kagle")


def test_without_a_calibration_the_command_to_make_one_is_named():
    with pytest.raises(InputError, match="strata bench calibrate"):
        load_profile(None)


def test_a_calibration_of_this_machine_is_used_with_the_disk_measured_anew(tmp_path, quick):
    save_profile(replace(PROFILE, machine=describe_machine(), cached_bytes_per_s=9e9), calibrated_path())
    rates = rates_for(tmp_path)
    assert rates.layer == LAYER
    assert rates.gemm_flop_per_s == 5e11
    assert rates.disk_bytes_per_s == 7e8
    assert rates.cached_bytes_per_s is None
    assert rates.rates_from == "calibrated 2026-01-02"
    assert load_profile(None).machine == describe_machine()


@pytest.mark.parametrize(
    "change", [{"num_cores": 99}, {"num_threads": 99}, {"cpu": "other"}, {"gpus": ("T4",)}]
)
def test_a_calibration_of_another_machine_is_ignored_and_that_is_said(change, tmp_path, quick):
    save_profile(replace(PROFILE, machine=replace(describe_machine(), **change)), calibrated_path())
    rates = rates_for(tmp_path)
    assert rates.layer is None
    assert rates.gemm_flop_per_s == 1e10
    assert rates.rates_from.startswith("measured quickly (the calibration is of another machine")
    with pytest.raises(InputError, match="another machine"):
        load_profile(None)


def test_a_broken_calibration_is_ignored_and_that_is_said(tmp_path, quick):
    calibrated_path().parent.mkdir(parents=True)
    calibrated_path().write_text("{}")
    assert "the calibration is not used" in rates_for(tmp_path).rates_from


@pytest.mark.parametrize(
    "asked", [{"dtype": torch.float16}, {"linear": "int8"}, {"devices": ("cuda:0",)}], ids=str
)
def test_what_was_not_calibrated_is_measured_quickly(asked, tmp_path, quick):
    save_profile(replace(PROFILE, machine=describe_machine()), calibrated_path())
    assert rates_for(tmp_path, **asked).rates_from == "measured quickly"


@pytest.mark.parametrize(("measured", "gain"), [(None, 1.1), (1.4, 1.4)])
def test_a_calibration_without_lanes_has_the_usual_gain(measured, gain, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    save_profile(replace(PROFILE, machine=describe_machine(), two_lanes_gain=measured), calibrated_path())
    rates = rates_for(tmp_path)
    assert (rates.two_lanes_gain, rates.gain) == (gain, 1.0)
    assert rates_for(tmp_path, devices=("cpu", "cpu")).gain == gain


def test_rates_must_be_positive():
    with pytest.raises(ValueError, match="elements_per_s is 0"):
        LayerRates(**(asdict(LAYER) | {"elements_per_s": 0.0}))


def test_devices_of_a_profile():
    assert load_profile("kaggle-2xt4").choose_devices("cuda:1") == ("cuda:1",)
    assert PROFILE.choose_devices("cpu,cpu") == ("cpu", "cpu")
    with pytest.raises(InputError, match="--devices: 'cuda:2' is not there; profile kaggle-2xt4 has cuda:0"):
        load_profile("kaggle-2xt4").choose_devices("cuda:0,cuda:2")
