"""`strata doctor`: what this machine is, what is missing for which feature, and what strata would do here.

Owns the tables; facts come from the modules beside it. Takes a few seconds, most of them for loading torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from strata.engine.files import to_json
from strata.engine.machine.devices import GIB
from strata.engine.results.machine_facts import collect_machine_facts, package_version, read_cpuinfo
from strata.scripts.doctor.advice import Advice, advise, temporary_folder
from strata.scripts.doctor.config import DoctorConfig
from strata.scripts.doctor.devices import DeviceFacts, list_devices
from strata.scripts.doctor.disks import DiskFacts, measure_folder
from strata.scripts.doctor.extras import ALWAYS, DISTRIBUTION, ExtraFacts, list_extras
from strata.scripts.kaggle.cells import Places, find_places

VERSIONS = ("strata-score", "torch", "transformers", "tokenizers", "safetensors", "peft", "torchao", "triton")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All that was found out.

    Attributes:
        machine: CPU, cores, RAM in GiB, platform.
        cpu_flags: those of its features that matter here.
        devices: CUDA devices.
        disks: of the folders that were asked for.
        versions: of packages by name; None where one is absent.
        extras: what is missing for which feature.
        troubles: what keeps strata from working as it should, a line each.
        advice: what strata would do.
    """

    machine: dict[str, Any]
    cpu_flags: tuple[str, ...]
    devices: list[DeviceFacts]
    disks: list[DiskFacts]
    versions: dict[str, str | None]
    extras: list[ExtraFacts]
    troubles: tuple[str, ...]
    advice: Advice


def run_doctor(config: DoctorConfig) -> int:
    """Examines this machine and prints what was found. Returns the exit status, 0."""
    found = examine(config)
    if config.json:
        print(json.dumps(to_json(asdict(found)), indent=2))
    else:
        print_examination(found, Console(highlight=False))
    return 0


def examine(config: DoctorConfig) -> Examination:
    """Finds everything out."""
    places = find_places()
    devices, extras = list_devices(), list_extras()
    versions = {name: package_version(name) for name in VERSIONS}
    available_gib = round(psutil.virtual_memory().available / GIB, 2)
    flags = read_cpuinfo().split()
    return Examination(
        machine=collect_machine_facts() | {"ram_available_gib": available_gib},
        cpu_flags=tuple(flag for flag in CPU_FLAGS if flag in flags),
        devices=devices,
        disks=[measure_folder(folder) for folder in config.folder or _folders(places)],
        versions=versions,
        extras=extras,
        troubles=tuple(find_troubles(devices, versions, extras)),
        advice=advise(devices, places),
    )


def find_troubles(
    devices: list[DeviceFacts], versions: dict[str, str | None], extras: list[ExtraFacts]
) -> list[str]:
    """What keeps strata from working as it should, a line each."""
    told = [f"{device.name} ({device.model}): {device.trouble}" for device in devices if device.trouble]
    if not extras:
        told.append(f"{DISTRIBUTION} is not installed: what it needs cannot be compared with what is there")
    told += [f"needed: {missing}" for extra in extras if extra.name == ALWAYS for missing in extra.missing]
    torchao = versions.get("torchao")
    if versions.get("peft") and torchao and _parts(torchao) < OLDEST_TORCHAO:
        told.append(f"torchao {torchao} makes peft refuse LoRA; expected pip uninstall -y torchao")
    return told


def print_examination(found: Examination, console: Console) -> None:
    """The tables."""
    for title, rows in (
        ("this machine", _machine_rows(found)),
        ("what strata would do", _advice_rows(found.advice)),
        ("features", _extra_rows(found.extras)),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for line in found.troubles or ("no trouble found",):
        console.print(f"trouble: {line}" if found.troubles else line, markup=False, soft_wrap=True)


def _machine_rows(found: Examination) -> list[tuple[str, str]]:
    facts = found.machine
    rows = [
        ("CPU", f"{facts['cpu']}, {facts['num_usable_cores']} of {facts['num_cores']} cores"),
        ("CPU features", ", ".join(found.cpu_flags) or "none that strata uses"),
        ("RAM", f"{facts['ram_available_gib']:.1f} GiB free of {facts['ram_gib']:.1f}"),
    ]
    for device in found.devices:
        free = "not usable" if device.free_bytes is None else f"{device.free_bytes / GIB:.1f} GiB free"
        total = f"{device.total_bytes / GIB:.1f} GiB"
        rows.append((device.name, f"{device.model}, capability {device.capability}, {free} of {total}"))
    if not found.devices:
        rows.append(("CUDA devices", "none that torch sees"))
    rows += [(f"disk of {disk.folder}", _describe_disk(disk)) for disk in found.disks]
    versions = (f"{name} {version}" for name, version in found.versions.items() if version)
    return [*rows, ("versions", ", ".join(versions))]


def _describe_disk(disk: DiskFacts) -> str:
    if disk.free_bytes is None:
        return "no such folder"
    parts = [f"{disk.free_bytes / GIB:.1f} GiB free"]
    for what, rate in (("reads", disk.read_bytes_per_s), ("writes", disk.write_bytes_per_s)):
        if rate is not None:
            parts.append(f"{what} {rate / 1e6:,.0f} MB/s")
    return ", ".join(parts)


def _advice_rows(advice: Advice) -> list[tuple[str, str]]:
    dtypes = ", ".join(f"{stored} checkpoints in {dtype}" for stored, dtype in advice.dtype.items())
    cache = "without one: of use before a slow mount" if advice.cache_dir is None else str(advice.cache_dir)
    lanes = " (auto: in two lanes where they are no slower)" if advice.devices == ("cpu",) else ""
    return [
        ("--devices", ",".join(advice.devices) + lanes),
        ("--dtype", dtypes),
        ("--dtype int8", advice.int8),
        ("--memory-gib", f"{advice.device_budget_bytes / GIB:.1f} a device"),
        ("--host-memory-gib", f"{advice.host_budget_bytes / GIB:.1f}"),
        ("--cache-dir", cache),
    ]


def _extra_rows(extras: list[ExtraFacts]) -> list[tuple[str, str]]:
    rows = []
    for extra in extras:
        if extra.name != ALWAYS:
            state = "ready" if not extra.missing else "lacks " + ", ".join(extra.missing)
            rows.append((extra.name, f"{extra.use}: {state}"))
    return rows


def _folders(places: Places | None) -> tuple[Path, ...]:
    if places is not None:
        return places.input, places.working, places.scratch
    return tuple(dict.fromkeys((Path.cwd(), temporary_folder())))


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdecimal())


OLDEST_TORCHAO = (0, 16)
"""What peft 0.19 accepts beside itself."""
