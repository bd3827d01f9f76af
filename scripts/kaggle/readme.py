"""README.md of what `strata kaggle` leaves: the commands that upload and start it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from strata.scripts.kaggle.config import KaggleSettings
from strata.scripts.kaggle.sources import Sources


def describe_upload(settings: KaggleSettings, sources: Sources, wheels: Sequence[Path]) -> str:
    """The text."""
    kernel, dataset = f"{settings.owner}/{settings.name}", f"{settings.owner}/{settings.wheels_name}"
    parts = [
        f"# {settings.name}: to be run on Kaggle",
        "`pip install kaggle` gives the command; `kaggle --help` tells how it knows who you are. Here:",
        _commands(
            f"kaggle datasets create -p wheelhouse            # the first time ({_size(wheels)})",
            'kaggle datasets version -p wheelhouse -m "again" # later',
            f"kaggle datasets status {dataset}",
        ),
        *_folders(sources),
        "When all data sets are ready:",
        _commands(
            "kaggle kernels push -p kernel",
            f"kaggle kernels status {kernel}",
            f"kaggle kernels output {kernel} -p output",
        ),
        *_submit(settings, sources, kernel),
        "## What is mounted",
        "\n".join(f"- {line}" for line in _mounted(settings, sources)),
        "## What is in wheelhouse/",
        "\n".join(f"- {wheel.name}" for wheel in wheels),
        "What Kaggle's image has is not shipped again; `strata kaggle --image FILE`, with what `pip freeze` "
        "prints on a kernel, tells of another.",
        "## The machine",
        'kernel-metadata.json asks for `"NvidiaTeslaT4"`, the machine with two T4, without internet. '
        "Its torch cannot use a P100: where the notebook's table of the machine shows one, the run is on the "
        "CPU.",
    ]
    return "\n\n".join(parts) + "\n"


def _commands(*lines: str) -> str:
    return "\n".join(("```", *lines, "```"))


def _size(wheels: Sequence[Path]) -> str:
    return f"{sum(wheel.stat().st_size for wheel in wheels) / 1e6:.1f} MB"


def _folders(sources: Sources) -> list[str]:
    if not sources.to_upload:
        return []
    lines = []
    for path, dataset in sources.to_upload:
        lines += [
            f"kaggle datasets init -p {path}    # then, in its dataset-metadata.json, the id {dataset}",
            f"kaggle datasets create -p {path} -r tar",
        ]
    return ["What CONFIG names of this machine has to be there too, each as a data set:", _commands(*lines)]


def _submit(settings: KaggleSettings, sources: Sources, kernel: str) -> list[str]:
    if not sources.competitions:
        return []
    return [
        f"That run has only the public stub of the competition, and is given {settings.commit_deadline}.",
        "To have the hidden questions scored, with N the version that `push` printed:",
        _commands(
            f"kaggle competitions submit {sources.competitions[0]} -k {kernel} -v N "
            "-f submission.csv -m strata"
        ),
    ]


def _mounted(settings: KaggleSettings, sources: Sources) -> list[str]:
    lines = [f"data set {settings.owner}/{settings.wheels_name}"]
    lines += [f"data set {name}" for name in sources.datasets]
    lines += [f"model {name}" for name in sources.models]
    lines += [f"competition {name}" for name in sources.competitions]
    return lines + [f"NOT FOUND: {path}: name it with --model or --dataset" for path in sources.unknown]
