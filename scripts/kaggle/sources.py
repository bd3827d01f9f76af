"""What a pipeline's paths say has to be mounted: data sets, models, competitions; which files go along."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from strata.engine.types import InputError
from strata.scripts.kaggle.config import KaggleSettings
from strata.scripts.kaggle.mounts import INPUT

MAX_BUNDLED_BYTES = 20 << 20
FRAMEWORKS = ("transformers", "pytorch", "gguf", "keras", "other", "flax", "jax", "onnx")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a kernel mounts.

    Attributes:
        datasets: OWNER/NAME.
        models: OWNER/MODEL/FRAMEWORK/VARIATION/VERSION.
        competitions: names.
        bundled: small files of this machine, which go into the data set of wheels.
        to_upload: folders of this machine, and the data set that each is expected to become.
        unknown: paths whose owner they do not tell, and that no flag names.
    """

    datasets: tuple[str, ...]
    models: tuple[str, ...]
    competitions: tuple[str, ...]
    bundled: tuple[Path, ...]
    to_upload: tuple[tuple[Path, str], ...]
    unknown: tuple[str, ...]


def find_sources(paths: Sequence[str], settings: KaggleSettings) -> Sources:
    """Sorts paths by what has to be mounted for them; flags come first.

    Raises:
        InputError: two files of this machine have one name.
    """
    datasets, models = list(settings.dataset), list(settings.model)
    competitions = [settings.competition] if settings.competition else []
    bundled: list[Path] = []
    to_upload: list[tuple[Path, str]] = []
    unknown: list[str] = []
    for text in paths:
        parts = PurePosixPath(text).parts
        if parts[:3] != INPUT:
            _sort_local(Path(text), settings, datasets, bundled, to_upload)
        elif parts[3:4] == ("datasets",) and len(parts) > 5:
            datasets.append("/".join(parts[4:6]))
        elif parts[3:4] == ("models",) and len(parts) > 8:
            models.append("/".join(parts[4:9]))
        elif parts[3:4] == ("competitions",) and len(parts) > 4:
            competitions.append(parts[4])
        elif parts[4:5] and parts[4] in FRAMEWORKS:
            if not any(f"/{parts[3]}/" in model for model in models):
                unknown.append(text)
        elif len(parts) > 3:
            _sort_flat(parts[3], settings, datasets, competitions)
    _refuse_same_names(bundled)
    return Sources(
        datasets=tuple(dict.fromkeys(datasets)),
        models=tuple(dict.fromkeys(models)),
        competitions=tuple(dict.fromkeys(competitions)),
        bundled=tuple(dict.fromkeys(bundled)),
        to_upload=tuple(dict.fromkeys(to_upload)),
        unknown=tuple(unknown),
    )


def slug_of(name: str) -> str:
    """A name as Kaggle writes it in addresses."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _sort_flat(name: str, settings: KaggleSettings, datasets: list[str], competitions: list[str]) -> None:
    """An old path that tells no owner: a data set of somebody that a flag names, else of one's own."""
    known = [*(text.partition("/")[2] for text in datasets), *competitions]
    if name not in known:
        datasets.append(f"{settings.owner}/{name}")


def _sort_local(
    path: Path,
    settings: KaggleSettings,
    datasets: list[str],
    bundled: list[Path],
    to_upload: list[tuple[Path, str]],
) -> None:
    if path.is_file() and path.stat().st_size <= MAX_BUNDLED_BYTES:
        bundled.append(path)
        return
    known = [text.partition("/")[2] for text in datasets]
    slug = slug_of(path.name)
    if slug not in known:
        datasets.append(f"{settings.owner}/{slug}")
    to_upload.append((path, next(text for text in datasets if text.partition("/")[2] == slug)))


def _refuse_same_names(bundled: Sequence[Path]) -> None:
    by_name: dict[str, Path] = {}
    for path in bundled:
        other = by_name.setdefault(path.name, path)
        if other.resolve() != path.resolve():
            raise InputError(f"{path} and {other} have one name; expected different ones, to find them by")
