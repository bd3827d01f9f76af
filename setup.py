"""Maps the five top-level folders into the namespace package `strata`; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup

FOLDERS = ("engine", "kernels", "training", "retrieval", "scripts")


def subpackages(folder: str) -> list[str]:
    """The folder and every folder below it that holds Python files, as dotted names."""
    root = Path(__file__).parent
    found = {path.parent.relative_to(root) for path in (root / folder).rglob("*.py")} | {Path(folder)}
    return sorted(".".join(path.parts) for path in found)


setup(
    packages=["strata." + name for folder in FOLDERS for name in subpackages(folder)],
    package_dir={"strata." + folder: folder for folder in FOLDERS},
)
