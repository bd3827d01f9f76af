"""The wheel holds every module and data file, and works where nothing else of the project is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from strata.scripts.bridges.lm_eval_command import MODEL_CLASS, MODEL_NAME

from .scripts.kaggle.kernel_world import clean_environment, make_venv

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "kernels", "training", "retrieval", "scripts")
DATA = (
    "strata/engine/machine/profiles/kaggle-2xt4.json",
    "strata/engine/report/report.html.jinja",
    "strata/engine/report/report.css",
    "strata/engine/report/browser.js",
    "strata/scripts/demo_data/questions.csv",
    "strata/scripts/kaggle/image.txt",
    "strata/scripts/kaggle/wheels.txt",
    "strata/kernels/int8_linear/cuda/kernels.cu",
    "strata/kernels/int8_linear/cuda/intrinsics.cuh",
    "strata/scripts/demo_data/model/model.safetensors",
    "strata/training/demo_corpus/train.sh",
    *(f"strata/{folder}/py.typed" for folder in FOLDERS),
)
# Runs a command with the modules of one folder alone: an installed strata must not fill the gaps.
RUNNER = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path.insert(0, sys.argv.pop(1))
import strata
strata.__path__ = [sys.path[0] + "/strata"]
from strata.scripts.cli import main
raise SystemExit(main())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built beside it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    """The wheel, unpacked."""
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(wheel.parent / "unpacked")
    return wheel.parent / "unpacked"


def run(unpacked: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUNNER, str(unpacked), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_every_module_is_in_the_wheel(unpacked):
    ours = {path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    packed = {path.relative_to(unpacked / "strata") for path in (unpacked / "strata").rglob("*.py")}
    assert packed == ours


@pytest.mark.parametrize("name", DATA)
def test_data_files_are_in_the_wheel(unpacked, name):
    assert (unpacked / name).is_file()


def test_programs_and_plugins_that_the_wheel_brings(unpacked):
    """What pip makes of its metadata: the command, and the model that lm-evaluation-harness looks for."""
    (wheel,) = distributions(path=[str(unpacked)])
    found = {(entry.group, entry.name): entry.value for entry in wheel.entry_points}
    assert found == {
        ("console_scripts", "strata"): "strata.scripts.start:main",
        ("lm_eval.models", MODEL_NAME): MODEL_CLASS,
    }


def test_the_wheel_scores(unpacked, checkpoint, questions, tmp_path):
    flags = ["--model", str(checkpoint("llama-gqa")), "--questions", str(questions), "--out", "run"]
    done = run(unpacked, "score", *flags, "--devices", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    shape = ["--shape", "llama2-7b", "--questions", "9", "--profile", "cpu"]
    assert run(unpacked, "plan", *shape, cwd=tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_installed_in_a_fresh_venv_the_demo_runs(wheel, tmp_path):
    """The venv has what strata needs, but not strata; pip puts the wheel in, and nothing else is near."""
    python = make_venv(tmp_path, hidden=())
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    environment = clean_environment() | {"HOME": str(tmp_path)}
    subprocess.run(pip, check=True, env=environment)
    command = [str(python.parent / "strata"), "demo", "--out", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "this model, with retrieval" in done.stdout
    assert (tmp_path / "demo" / "run" / "report.html").is_file()
    code = "import strata.engine.types as one; print(one.__file__)"
    told = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(told.stdout.strip()).is_relative_to(tmp_path / "venv")
