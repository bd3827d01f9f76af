"""kernel-metadata.json and dataset-metadata.json, as the `kaggle` command reads them.

Source: docs/kernels_metadata.md and docs/datasets_metadata.md of Kaggle/kaggle-cli, and its issue 1196:
"NvidiaTeslaT4" is the machine with two T4.
"""

from __future__ import annotations

from typing import Any

from strata.scripts.kaggle.config import KaggleSettings
from strata.scripts.kaggle.sources import Sources

MACHINE_SHAPE = "NvidiaTeslaT4"
NOTEBOOK = "strata.ipynb"


def kernel_metadata(settings: KaggleSettings, sources: Sources) -> dict[str, Any]:
    """What `kaggle kernels push` is told."""
    wheels = f"{settings.owner}/{settings.wheels_name}"
    return {
        "id": f"{settings.owner}/{settings.name}",
        # Kaggle makes a kernel's address of its title.
        "title": settings.name,
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": "true",
        "enable_gpu": "true",
        "enable_internet": "false",
        "machine_shape": MACHINE_SHAPE,
        "dataset_sources": [wheels, *sources.datasets],
        "competition_sources": list(sources.competitions),
        "kernel_sources": [],
        "model_sources": list(sources.models),
    }


def dataset_metadata(settings: KaggleSettings) -> dict[str, Any]:
    """What `kaggle datasets create` is told of the wheels."""
    return {
        "title": settings.wheels_name,
        "id": f"{settings.owner}/{settings.wheels_name}",
        "licenses": [{"name": "other"}],
    }
