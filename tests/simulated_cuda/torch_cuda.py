"""Puts the simulated machine in torch.cuda's place, for the rest of a process. Knows nothing of the engine.

Not there: a card's own numerics and speed, backward passes (autograd's engine wants a real device).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

import torch

from . import streams
from .accounts import ACCOUNTS
from .clocks import note_end, note_joined, note_start, this_thread
from .memory import register_pinned, unregister_pinned
from .operations import OneDevice
from .settings import SETTINGS

ALREADY_REGISTERED, NOT_REGISTERED, NOT_SUPPORTED = 712, 713, 801
"""cudaError_t."""


def can_be_installed() -> str | None:
    """Why it cannot; None when it can."""
    if shutil.which("g++") is None:
        return "a device guard has to be compiled, and there is no g++"
    if torch.version.cuda is not None or torch.version.hip is not None:
        return "this torch was built for real cards"
    return None


def install() -> None:
    """Replaces torch.cuda and follows threads; there is no way back."""
    _load_device_guard()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") then comes to the mode
    for name, replacement in _replacements().items():
        setattr(torch.cuda, name, replacement)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    # Tensors that wrap others do not mix with inference tensors; values are the same.
    torch.inference_mode = torch.no_grad  # type: ignore[misc]
    _follow_threads()


def _load_device_guard() -> None:
    folder = Path(torch.__file__).parent
    library = Path(tempfile.gettempdir()) / f"device-guard-{os.getuid()}-torch-{torch.__version__}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            source = Path(__file__).with_name("device_guard.cpp")
            command = ["g++", "-std=c++20", "-fPIC", "-shared", f"-I{folder}/include", str(source)]
            subprocess.run([*command, f"-L{folder}/lib", "-lc10", "-o", str(made)], check=True)
            made.replace(library)
    ctypes.CDLL(str(library))


def _replacements() -> dict[str, Any]:
    def account(device: Any) -> str:
        return str(streams.device_of(device))

    def free_and_total(device: Any = None) -> tuple[int, int]:
        return SETTINGS.total_bytes - ACCOUNTS.live_bytes[account(device)], SETTINGS.total_bytes

    def reset_peak(device: Any = None) -> None:
        ACCOUNTS.peak_bytes[account(device)] = ACCOUNTS.live_bytes[account(device)]

    def properties(device: Any = None) -> types.SimpleNamespace:
        major, minor = SETTINGS.capability
        return types.SimpleNamespace(
            name="simulated", major=major, minor=minor, total_memory=SETTINGS.total_bytes, uuid="simulated"
        )

    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: SETTINGS.devices,
        "current_device": streams.current_device,
        "set_device": streams.set_device,
        "device": streams.use_device,
        "get_device_capability": lambda device=None: SETTINGS.capability,
        "get_device_name": lambda device=None: "simulated card",
        "get_device_properties": properties,
        "get_arch_list": lambda: ["sm_{}{}".format(*SETTINGS.capability)],
        "can_device_access_peer": lambda device, peer: True,
        "mem_get_info": free_and_total,
        "synchronize": streams.synchronize,
        "_sleep": lambda cycles: None,
        "Stream": streams.Stream,
        "Event": streams.Event,
        "stream": streams.use_stream,
        "current_stream": streams.current_stream,
        "default_stream": streams.default_stream,
        "reset_peak_memory_stats": reset_peak,
        "max_memory_allocated": lambda device=None: ACCOUNTS.peak_bytes[account(device)],
        "memory_allocated": lambda device=None: ACCOUNTS.live_bytes[account(device)],
        "empty_cache": lambda: None,
        "cudart": lambda: types.SimpleNamespace(cudaHostRegister=_register, cudaHostUnregister=_unregister),
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }


def _register(address: int, num_bytes: int, flags: int) -> int:
    if SETTINGS.refuses_registration:
        return NOT_SUPPORTED
    return 0 if register_pinned(address, num_bytes) else ALREADY_REGISTERED


def _unregister(address: int) -> int:
    return 0 if unregister_pinned(address) else NOT_REGISTERED


def _follow_threads() -> None:
    start, run, join = threading.Thread.start, threading.Thread.run, threading.Thread.join

    def started(thread: threading.Thread) -> None:
        note_start(thread)
        start(thread)

    def ran(thread: threading.Thread) -> None:
        this_thread()
        torch._C._set_only_lift_cpu_tensors(True)  # a thread's own setting
        with OneDevice():
            run(thread)
        note_end()

    def joined(thread: threading.Thread, timeout: float | None = None) -> None:
        join(thread, timeout)
        if not thread.is_alive():
            note_joined(thread)

    threading.Thread.start, threading.Thread.run, threading.Thread.join = started, ran, joined  # type: ignore
