"""Which packages of which extra are missing or of another version: read from the installed package itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from strata.engine.results.machine_facts import package_version

DISTRIBUTION = "strata-score"
ALWAYS = ""
"""Stands for what strata itself asks for."""
USES = {
    ALWAYS: "everything",
    "adapters": "LoRA adapters of encoders",
    "calibration": "isotonic calibration",
    "encoder": "a small bundled encoder for dense search",
    "gguf": "GGUF files",
    "kaggle": "strata kaggle",
    "lm-eval": "strata lm-eval",
    "quant": "quantised checkpoints read by transformers too; strata needs nothing for them",
    "ray": "strata score --ray, search over a cluster",
    "retrieval": "strata index, strata search, context sources of strata run",
    "train": "strata train",
    "triton": "fused kernels on cards; torch for CUDA brings it",
}


@dataclass(frozen=True, kw_only=True)
class ExtraFacts:
    """An extra of the package.

    Attributes:
        name: of the extra; empty for what is always needed.
        use: what it is for.
        missing: requirements that are not met, with the version that is there, such as
            `numba>=0.60 (there is 0.59.1)`.
    """

    name: str
    use: str
    missing: tuple[str, ...]


def list_extras() -> list[ExtraFacts]:
    """The extras of the installed package; none where strata runs from a folder that was never installed."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    return examine_extras(requirements, package_version)


def examine_extras(requirements: Sequence[str], version_of: Callable[[str], str | None]) -> list[ExtraFacts]:
    """What of each extra is missing.

    Args:
        requirements: as a package's metadata lists them.
        version_of: the installed version of a package by its name; None where it is absent.
    """
    parsed = [Requirement(text) for text in requirements]
    by_extra = {name: [one for one in parsed if _belongs(one, name)] for name in USES}
    return [
        ExtraFacts(name=name, use=USES[name], missing=tuple(_missing(wanted, version_of)))
        for name, wanted in by_extra.items()
        if wanted
    ]


def _belongs(requirement: Requirement, extra: str) -> bool:
    """Whether an extra asks for it, on this machine, and nothing else does."""
    marker = requirement.marker
    if marker is None:
        return extra == ALWAYS
    return marker.evaluate({"extra": extra}) and (extra == ALWAYS or not marker.evaluate({"extra": ALWAYS}))


def _missing(requirements: Sequence[Requirement], version_of: Callable[[str], str | None]) -> list[str]:
    told = []
    for requirement in requirements:
        version = version_of(requirement.name)
        if version is None:
            told.append(f"{requirement.name}{requirement.specifier}")
        elif not requirement.specifier.contains(version, prereleases=True):
            told.append(f"{requirement.name}{requirement.specifier} (there is {version})")
    return sorted(told)
