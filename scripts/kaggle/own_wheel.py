"""strata's own wheel: one that is given, or one made from the source folder that this file lies in."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.version import Version

from strata.engine.results.machine_facts import package_version
from strata.engine.types import InputError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "kernels", "training", "retrieval", "scripts")
OLDEST_SETUPTOOLS = Version("77")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def find_own_wheel(given: Path | None, wheels: Path | None, folder: Path) -> Path:
    """The wheel of this strata.

    Args:
        given: what the user named.
        wheels: a folder that may have it.
        folder: where one is made.

    Raises:
        InputError: there is none, and nothing to make it from.
    """
    if given is not None:
        if not given.is_file():
            raise InputError(f"--wheel: {given} is not there; expected a .whl file")
        return given
    if (ROOT / "pyproject.toml").is_file():
        return build_wheel(folder)
    version = package_version("strata-score")
    found = sorted((wheels or Path()).glob(f"strata_score-{version}-*.whl")) if wheels else []
    if not found:
        raise InputError(
            "--wheel: strata runs from an installed package, which cannot be packed again; expected its .whl "
            "file, or a --wheels folder that has it"
        )
    return found[-1]


def build_wheel(folder: Path) -> Path:
    """Makes the wheel from a copy of the source folder, which stays as it is.

    Raises:
        InputError: pip cannot make it.
    """
    with tempfile.TemporaryDirectory() as copied:
        for name in FOLDERS:
            shutil.copytree(ROOT / name, Path(copied, name), ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, copied)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
        # Without the index that an isolated build would ask, where that can be avoided.
        setuptools = package_version("setuptools")
        if setuptools and Version(setuptools) >= OLDEST_SETUPTOOLS:
            command += ["--no-build-isolation"]
        done = subprocess.run([*command, copied], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise InputError(f"{ROOT}: no wheel could be made of it: {last}")
    (wheel,) = folder.glob("strata_score-*.whl")
    return wheel
