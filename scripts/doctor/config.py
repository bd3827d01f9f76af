"""What `strata doctor` can be told. Imports nothing heavy: --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Settings of an examination."""

    folder: tuple[Path, ...] = ()
    """Measure the disk of this folder; repeat for several. By default the working directory and the folder
    for temporary files; on Kaggle its mounts."""
    json: bool = False
    """Print one JSON object instead of tables."""
