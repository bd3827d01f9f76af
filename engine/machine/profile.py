"""What a machine reaches, measured once or known from elsewhere: a JSON file with units in its names.

Shipped profiles lie in `profiles/`; `strata bench calibrate` leaves one in the user's cache folder, which is
used for as long as it describes this machine. Knows nothing of models or plans.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import ConfigDict, Field

from strata.engine.files import write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.machine.measure import measure_disk_rate, measure_quickly, usual_lanes_gain
from strata.engine.machine.rates import MEASURED_QUICKLY, LayerRates, LinearKind, MachineRates
from strata.engine.machine.shipped import find_shipped, shipped_names
from strata.engine.results.machine_facts import cpu_name, num_usable_cores
from strata.engine.types import InputError

DeviceKind = Literal["cpu", "cuda"]
POSITIVE = ("_per_s", "_bytes", "devices", "_gain")


@dataclass(frozen=True, kw_only=True)
class MachineDescription:
    """What must be the same for a calibration to hold."""

    cpu: str
    num_cores: int
    num_threads: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ComputeRates:
    """One way of computing on one device: the GEMM roofline, and what a decoder layer reaches."""

    gemm_flop_per_s: float
    layer: LayerRates


@dataclass(frozen=True, kw_only=True)
class MachineProfile:
    """A machine's rates; see MachineRates for those of the same name.

    Attributes:
        date: when it was measured or written, ISO 8601.
        device_memory_bytes: what weights and activations may take on one device.
        compute: by dtype ("float32", "bfloat16", "float16") and "int8" (8-bit linear layers, the rest in
            `int8_activations`).
        two_lanes_gain: None where it was not measured.
        source: where figures come from, by field.
    """

    name: str
    date: str
    device_kind: DeviceKind
    num_devices: int
    device_memory_bytes: int
    host_memory_bytes: int
    machine: MachineDescription
    compute: Mapping[str, ComputeRates]
    int8_activations: str = "float16"
    disk_bytes_per_s: float
    cached_bytes_per_s: float | None = None
    cache_bytes: int | None = None
    store_bytes_per_s: float | None = None
    host_bytes_per_s: float
    host_to_device_bytes_per_s: float | None = None
    decode_weights_per_s: Mapping[str, float] = field(default_factory=dict)
    read_interference: float = 0.0
    two_lanes_gain: float | None = None
    source: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rates = [rate for name, rate in asdict(self).items() if name.endswith(POSITIVE)]
        numbers = [rate for rate in rates if isinstance(rate, int | float)]
        if not all(number > 0 for number in (*numbers, *self.decode_weights_per_s.values())):
            raise ValueError("rates, sizes and gains must be positive")
        if self.device_kind not in get_args(DeviceKind):
            raise ValueError(f"device_kind is {self.device_kind!r}; expected cpu or cuda")
        if (self.device_kind == "cpu") != (self.host_to_device_bytes_per_s is None):
            raise ValueError("host_to_device_bytes_per_s belongs to device_kind cuda, and to it alone")

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices, one a worker."""
        return tuple("cpu" if self.device_kind == "cpu" else f"cuda:{n}" for n in range(self.num_devices))

    def choose_devices(self, setting: str) -> tuple[str, ...]:
        """The devices that `--devices` names of this machine.

        Raises:
            InputError: it has no such device.
        """
        names = self.devices if setting == "auto" else tuple(name.strip() for name in setting.split(","))
        absent = [name for name in names if name not in self.devices]
        if absent:
            expected = f"profile {self.name} has {', '.join(self.devices)}"
            raise InputError(f"--devices: {absent[0]!r} is not there; {expected}")
        return names

    def resolve_dtype(self, stored: torch.dtype) -> str:
        """The compute dtype of a checkpoint: its own if the profile knows it, else the fastest one."""
        name = str(stored).removeprefix("torch.")
        known = {way: rates for way, rates in self.compute.items() if way != "int8"}
        return name if name in known else max(known, key=lambda way: known[way].gemm_flop_per_s)

    def rates(self, dtype: str, linear: LinearKind) -> MachineRates:
        """What a plan is made with that has one lane a device.

        Args:
            dtype: of activations.
            linear: how linear layers are computed.

        Raises:
            InputError: the profile has no figures for this way of computing.
        """
        way = "int8" if linear == "int8" else dtype
        if way not in self.compute:
            known = ", ".join(self.compute)
            raise InputError(f"profile {self.name}: no rates for {way}; expected one of {known}")
        return MachineRates(
            gemm_flop_per_s=self.compute[way].gemm_flop_per_s,
            disk_bytes_per_s=self.disk_bytes_per_s,
            host_to_device_bytes_per_s=self.host_to_device_bytes_per_s,
            layer=self.compute[way].layer,
            cached_bytes_per_s=self.cached_bytes_per_s,
            cache_bytes=self.cache_bytes,
            store_bytes_per_s=self.store_bytes_per_s,
            host_bytes_per_s=self.host_bytes_per_s,
            decode_weights_per_s=self.decode_weights_per_s,
            read_interference=self.read_interference,
            two_lanes_gain=self.two_lanes_gain,
            rates_from=f"profile {self.name}",
        )


class DescriptionFile(Schema):
    """A profile's account of its machine."""

    model_config = ConfigDict(extra="forbid")

    cpu: str
    num_cores: int
    num_threads: int
    gpus: list[str] = Field(default_factory=list)


class RatesFile(Schema):
    """A profile's account of one way of computing."""

    gemm_flop_per_s: float
    layer: dict[str, float]


class ProfileFile(Schema):
    """A profile as JSON holds it: types alone, since values are for MachineProfile to judge."""

    model_config = ConfigDict(extra="forbid")

    name: str
    date: str
    device_kind: str
    num_devices: int = Field(ge=1, le=1024)
    device_memory_bytes: int
    host_memory_bytes: int
    machine: DescriptionFile
    compute: dict[str, RatesFile]
    int8_activations: str = "float16"
    disk_bytes_per_s: float
    cached_bytes_per_s: float | None = None
    cache_bytes: int | None = None
    store_bytes_per_s: float | None = None
    host_bytes_per_s: float
    host_to_device_bytes_per_s: float | None = None
    decode_weights_per_s: dict[str, float] = Field(default_factory=dict)
    read_interference: float = 0.0
    two_lanes_gain: float | None = None
    source: dict[str, str] = Field(default_factory=dict)


def describe_machine() -> MachineDescription:
    """This machine, as this process may use it."""
    return MachineDescription(
        cpu=cpu_name() or platform.machine(),
        num_cores=num_usable_cores() or 1,
        num_threads=torch.get_num_threads(),
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
    )


def calibrated_path() -> Path:
    """Where a calibration is kept: strata/machine.json in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "strata" / "machine.json"


def measure_rates(
    devices: tuple[str, ...], dtype: torch.dtype, width: int, file: Path, linear: LinearKind = "dense"
) -> MachineRates:
    """Rates for a plan on this machine: calibrated if that fits, else measured quickly; the disk always is.

    Args:
        devices: one a worker.
        dtype: of activations.
        width: of the model, for the quick measurement.
        file: whose disk counts.
        linear: how linear layers are computed.
    """
    profile, note = find_calibration()
    name, kind = str(dtype).removeprefix("torch."), devices[0].split(":")[0]
    way = "int8" if linear == "int8" else name
    if profile is None or profile.device_kind != kind or way not in profile.compute:
        quick = measure_quickly(devices, dtype, width, file, linear)
        return replace(quick, rates_from=f"{MEASURED_QUICKLY}{note}")
    return replace(
        profile.rates(name, linear).shared_by(devices.count("cpu") or 1),
        disk_bytes_per_s=measure_disk_rate(file),
        cached_bytes_per_s=None,
        rates_from=f"calibrated {profile.date[:10]}",
    )


def find_calibration() -> tuple[MachineProfile | None, str]:
    """This machine's calibration, if there is one that still holds; else None and a note that says why."""
    path = calibrated_path()
    if not path.is_file():
        return None, ""
    try:
        profile = read_profile(path)
    except InputError as error:
        return None, f" (the calibration is not used: {error})"
    if profile.machine != describe_machine():
        return None, " (the calibration is of another machine, or of another number of cores)"
    return replace(profile, two_lanes_gain=profile.two_lanes_gain or usual_lanes_gain()), ""


def load_profile(name: str | None) -> MachineProfile:
    """A shipped profile by name, any by its file, or (None) this machine's calibration.

    Raises:
        InputError: there is none.
    """
    shipped = ", ".join(shipped_names())
    if name is None:
        profile, note = find_calibration()
        if profile is None:
            raise InputError(
                f"--profile: this machine has no calibration{note}; run `strata bench calibrate`, or name "
                f"one of {shipped}, or a file"
            )
        return profile
    file, note = find_shipped(name)
    if file is not None:
        profile = read_profile(file)
        return replace(profile, name=f"{profile.name}{note}")
    if not Path(name).is_file():
        raise InputError(f"--profile: {name!r} is unknown; expected one of {shipped}, or a file")
    return read_profile(Path(name))


def read_profile(path: Path) -> MachineProfile:
    """The profile in a file.

    Raises:
        InputError: the file is no profile.
    """
    content = read_json_object(path)
    where = f"{path}: not a machine profile"
    check_schema(ProfileFile, content, where)
    try:
        return _parse_profile(content)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {error}; expected what `calibrate` writes") from None


def save_profile(profile: MachineProfile, path: Path) -> None:
    """Writes a profile; rates that are infinite (parts that cost nothing) are left out."""
    content = asdict(profile)
    for way in content["compute"].values():
        way["layer"] = {name: rate for name, rate in way["layer"].items() if rate != float("inf")}
    write_text_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _parse_profile(content: dict[str, Any]) -> MachineProfile:
    compute = {
        way: ComputeRates(gemm_flop_per_s=rates["gemm_flop_per_s"], layer=LayerRates(**rates["layer"]))
        for way, rates in content["compute"].items()
    }
    described = MachineDescription(**content["machine"] | {"gpus": tuple(content["machine"].get("gpus", ()))})
    return MachineProfile(**{**content, "compute": compute, "machine": described})
