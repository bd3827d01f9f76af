"""`strata kaggle`: leaves all that has to be uploaded to run a pipeline as a Kaggle kernel, offline."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from strata.engine.files import write_text_atomically
from strata.engine.pipeline.config import Pipeline, read_pipeline
from strata.engine.types import InputError
from strata.scripts.kaggle.config import KaggleSettings
from strata.scripts.kaggle.kernel import SETTINGS
from strata.scripts.kaggle.metadata import NOTEBOOK, dataset_metadata, kernel_metadata
from strata.scripts.kaggle.notebook import build_notebook
from strata.scripts.kaggle.own_wheel import find_own_wheel
from strata.scripts.kaggle.paths import list_paths
from strata.scripts.kaggle.readme import describe_upload
from strata.scripts.kaggle.sources import Sources, find_sources
from strata.scripts.kaggle.wheelhouse import fill_wheelhouse, read_image

PIPELINE = "strata-kernel-pipeline.yaml"
"""What the user's file is called beside the wheels, whatever it was called."""


def run_kaggle(settings: KaggleSettings) -> int:
    """Writes everything. Returns the exit status, 0.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    settings.check()
    if settings.acceptance:
        require_acceptance()
    pipeline = read_pipeline(settings.config)
    sources = find_sources(list_paths(pipeline.file.values), settings)
    if pipeline.fits and sources.competitions:
        raise pipeline.file.error(
            (),
            "weights, calibration or risk are to be fitted, but a competition's questions have no answers; "
            "expected `fitted: FILE` of a run on answered questions",
        )
    needs_peft = any(member.member.adapter for member in pipeline.members.values())
    notebook = build_notebook(
        questions=settings.questions,
        deadline=settings.deadline,
        uninstall=("torchao",) if needs_peft else (),
        acceptance=settings.acceptance,
    )
    wheelhouse, kernel = _make_folders(settings)
    wheels = _fill(settings, pipeline, wheelhouse)
    for path in sources.bundled:
        shutil.copy(path, wheelhouse / path.name)
    shutil.copy(settings.config, wheelhouse / PIPELINE)
    _write_json(wheelhouse / SETTINGS, _kernel_file(settings, sources))
    _write_json(wheelhouse / "dataset-metadata.json", dataset_metadata(settings))
    _write_json(kernel / "kernel-metadata.json", kernel_metadata(settings, sources))
    _write_json(kernel / NOTEBOOK, notebook)
    write_text_atomically(settings.out / "README.md", describe_upload(settings, sources, wheels))
    _tell(settings, sources, wheels)
    return 0


def extras_for(pipeline: Pipeline, more: Sequence[str] = ()) -> list[str]:
    """Extras that a pipeline needs, as far as its file tells."""
    extras = set(more)
    for member in pipeline.members.values():
        if member.member.model.suffix == ".gguf":
            extras.add("gguf")
        if member.member.adapter is not None:
            extras.add("adapters")
    if pipeline.sources:
        extras.add("retrieval")
    if pipeline.calibration == "isotonic":
        extras.add("calibration")
    return sorted(extras)


def require_acceptance() -> None:
    """Raises InputError where this strata cannot accept a GPU."""
    if find_spec("strata.scripts.bench.gpu") is None:
        raise InputError("--acceptance: this strata has no `strata bench gpu`; expected one that has it")


def _make_folders(settings: KaggleSettings) -> tuple[Path, Path]:
    folders = settings.out / "wheelhouse", settings.out / "kernel"
    for folder in folders:
        if folder.exists():
            if not settings.overwrite:
                raise InputError(f"--out: {folder} is there already; expected --overwrite, or another folder")
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    return folders


def _fill(settings: KaggleSettings, pipeline: Pipeline, wheelhouse: Path) -> list[Path]:
    image = read_image(settings.image)
    made = settings.out / "own-wheel"
    made.mkdir(exist_ok=True)
    try:
        ours = find_own_wheel(settings.wheel, settings.wheels, made)
        extras = extras_for(pipeline, settings.extra)
        return fill_wheelhouse(ours, extras, wheelhouse, image, settings.wheels)
    finally:
        shutil.rmtree(made)


def _kernel_file(settings: KaggleSettings, sources: Sources) -> dict[str, Any]:
    return {
        "pipeline": PIPELINE,
        "questions": settings.questions,
        "deadline": settings.deadline,
        "commit_deadline": settings.commit_deadline,
        "is_competition": bool(sources.competitions),
    }


def _write_json(path: Path, content: Any) -> None:
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _tell(settings: KaggleSettings, sources: Sources, wheels: Sequence[Path]) -> None:
    console = Console(highlight=False)
    num_bytes = sum(wheel.stat().st_size for wheel in wheels)
    names = [f"{settings.owner}/{settings.wheels_name}", *sources.datasets, *sources.models]
    console.print(f"{len(wheels)} wheel(s), {num_bytes / 1e6:.1f} MB", markup=False)
    console.print(f"mounted: {', '.join((*names, *sources.competitions))}", markup=False, soft_wrap=True)
    console.print(f"how to upload: {settings.out / 'README.md'}", markup=False, soft_wrap=True)
    for path, dataset in sources.to_upload:
        if not path.exists():
            print(
                f"warning: {path}: not on this machine; expected in the data set {dataset}", file=sys.stderr
            )
    for unknown in sources.unknown:
        print(f"warning: {unknown}: whose model that is, is not known; name it with --model", file=sys.stderr)
