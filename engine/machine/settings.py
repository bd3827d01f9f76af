"""What of the machine a job may use, and how. Imports nothing heavy: --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.engine.json_files import check_fields
from strata.engine.types import InputError


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """Devices, dtype, memory, and where weights are read from; every field is a flag of the same name."""

    devices: str = "auto"
    """auto, cpu, or a list such as cuda:0,cuda:1; all share one read of each layer. With cpu,cpu two
    micro-batches are computed at a time, with more memory and often in less time; auto without a GPU does so
    on two threads, or where `strata bench calibrate` found it no slower, and the questions can be halved."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Compute dtype; auto is the checkpoint's own where the device is fast in it; int8 takes weights (a
    scale a channel) and activations (a scale a token) of all linear layers to 8 bits, and measures what that
    does to scores. On a CPU a short measurement tells what is fast, of int8 as well."""
    memory_gib: float | None = None
    """Budget for weights and activations on a device (on CPU: beyond what the libraries take)."""
    host_memory_gib: float | None = None
    """Budget in host RAM."""
    verify: bool = False
    """Check every tensor read against the checksums that `strata pack` left."""
    cache_dir: Path | None = None
    """Folder on a fast local disk that keeps what is read from a slow one, for later sweeps and runs."""

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        check_fields(self, MachineSettings)
        for flag, budget in (("--memory-gib", self.memory_gib), ("--host-memory-gib", self.host_memory_gib)):
            if budget is not None and not budget > 0:
                raise InputError(f"{flag}: {budget} is no amount of memory; expected a number above 0")
