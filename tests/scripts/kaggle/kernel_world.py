"""A world like a Kaggle kernel's: an interpreter that has the image's packages, and mounts in a folder.

The image's packages are those of `make kaggle-image` (Python 3.12, the image's versions), else those of the
interpreter that runs the tests. strata itself and what the image lacks are hidden: both have to come from the
wheels.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

from strata.scripts.kaggle.wheelhouse import PINS, read_image

ROOT = Path(__file__).parents[3]
SITE_OF = """
import json, sysconfig
from importlib.metadata import distributions
from pathlib import Path
hidden = {}
for one in distributions():
    name = one.name.lower().replace("_", "-").replace(".", "-")
    hidden.setdefault(name, []).extend(sorted({file.parts[0] for file in one.files or ()}))
print(json.dumps([sysconfig.get_paths()["purelib"], hidden]))
"""
NO_NETWORK = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Whoever kills it kills all processes inside."""


@dataclass(frozen=True, kw_only=True)
class KernelWorld:
    """A kernel's interpreter and folders.

    Attributes:
        python: the interpreter.
        root: holds input, working and scratch.
    """

    python: Path
    root: Path

    @property
    def competition(self) -> Path:
        """The mounted competition."""
        return self.root / "input" / "competitions" / "exam"

    @property
    def working(self) -> Path:
        """What the kernel leaves."""
        return self.root / "working"

    def mount(self, source: Path, *name: str) -> None:
        """Puts a folder or file below the mounts."""
        target = self.root.joinpath("input", *name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)

    def start(self, notebook: Path) -> subprocess.Popen[str]:
        """Begins to execute a notebook without a network; killing the process kills all that it began."""
        environment = clean_environment() | {
            f"STRATA_KAGGLE_{name.upper()}": str(self.root / name) for name in FOLDERS
        }
        environment |= {"HOME": str(self.root), "XDG_CACHE_HOME": str(self.root), "OMP_NUM_THREADS": "1"}
        runner = [str(self.python), str(Path(__file__).with_name("run_notebook.py"))]
        return subprocess.Popen(
            [*NO_NETWORK, *runner, str(notebook), str(self.root / "executed.ipynb")],
            env=environment,
            cwd=self.working,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def printed(self) -> str:
        """What all cells of the executed notebook printed."""
        notebook = json.loads((self.root / "executed.ipynb").read_text(encoding="utf-8"))
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
        return "".join("".join(output.get("text", "")) for output in outputs)


FOLDERS = ("input", "working", "scratch")


def clean_environment() -> dict[str, str]:
    """Variables for another interpreter than the tests' own, which may have its modules named by some."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run_image_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the interpreter that has the image's packages."""
    command = [str(image_python()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())


def image_python() -> Path:
    """The interpreter that has the image's packages."""
    made = ROOT / ".venv-kaggle" / "bin" / "python"
    return Path(os.environ.get("STRATA_KAGGLE_IMAGE", made if made.is_file() else sys.executable))


def require_notebooks() -> None:
    """Skips the test where no notebook can be executed without a network."""
    if subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no network namespace can be made here with unshare")
    if run_image_python("-c", "import ipykernel, nbclient").returncode != 0:
        pytest.skip(f"{image_python()} lacks ipykernel or nbclient")
    version = run_image_python("-c", "import platform; print(platform.python_version())").stdout.strip()
    if not version.startswith("3.12."):
        warnings.warn(
            f"no image of Kaggle's (make kaggle-image): notebooks run with Python {version}", stacklevel=2
        )


def make_venv(root: Path, hidden: Collection[str]) -> Path:
    """A fresh venv that sees the image's packages, but for strata and the hidden ones; its interpreter."""
    site, files = json.loads(run_image_python("-c", SITE_OF).stdout.splitlines()[-1])
    firsts = {first for name, names in files.items() if name in hidden for first in names}
    image = root / "image"
    image.mkdir()
    for entry in Path(site).iterdir():
        if entry.name not in firsts and "strata" not in entry.name and entry.suffix != ".pth":
            (image / entry.name).symlink_to(entry)
    run_image_python("-m", "venv", str(root / "venv")).check_returncode()
    (own,) = (root / "venv" / "lib").glob("python3*/site-packages")
    (own / "image.pth").write_text(f"{image}\n", encoding="utf-8")
    return root / "venv" / "bin" / "python"


def make_world(root: Path) -> KernelWorld:
    """A fresh venv over the image's packages, and empty mounts with one competition."""
    world = KernelWorld(python=make_venv(root, read_image(PINS)), root=root)
    for name in FOLDERS:
        (root / name).mkdir()
    world.competition.mkdir(parents=True)
    return world
