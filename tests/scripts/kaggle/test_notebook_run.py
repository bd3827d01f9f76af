"""The notebook, executed on a tree like Kaggle's: without a network, in a fresh venv, from the wheels alone.

Independent check: nbclient executes what `strata kaggle` wrote, with an interpreter that has only the image's
packages (`make kaggle-image`: Python 3.12 and the image's versions; without it, those of the tests' own).
"""

from __future__ import annotations

import csv
import json
import subprocess
import time
from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.scripts.cli import main
from strata.scripts.real_models import find_smollm2

from .kernel_world import KernelWorld, clean_environment, make_world, require_notebooks, run_image_python
from .test_wheelhouse import make_wheel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_QUESTIONS = 40
STAGES = """\
members:
  small: {model: /kaggle/input/tiny, head: letters}
  again: {model: /kaggle/input/tiny-two, head: loglik}
stages:
  - {name: all, members: [small]}
  - {name: hard, members: [again], questions: {least_sure: 0.9}}
"""
REAL = """\
members:
  smollm2: {model: /kaggle/input/smollm2/gguf/135m/1/smollm2.gguf, head: letters, chat: true}
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """A folder that plays a package index, with what the image lacks."""
    require_notebooks()
    folder = tmp_path_factory.mktemp("wheels")
    pip = ("-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder))
    done = run_image_python(*pip, "tyro==1.0.17", "gguf==0.19.0")
    if done.returncode != 0:
        pytest.skip("no package index gives tyro and gguf")
    return folder


@pytest.fixture
def world(tmp_path) -> KernelWorld:
    made = make_world(tmp_path)
    header = ["id", "prompt", "A", "B", "C", "D", "E"]
    rows = [
        [f"q{n}", f"How much is {n} and {n}?", *(str(2 * n + k) for k in range(5))]
        for n in range(NUM_QUESTIONS)
    ]
    with (made.competition / "test.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    with (made.competition / "sample_submission.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "prediction"], *([row[0], "A B C"] for row in rows)])
    return made


def write_notebook(world: KernelWorld, wheels: Path, pipeline: str, *flags: str) -> Path:
    """What `strata kaggle` leaves of a pipeline, mounted; the notebook's path."""
    file = world.root / "pipeline.yaml"
    file.write_text(pipeline, encoding="utf-8")
    out = world.root / "out"
    given = ["kaggle", str(file), "--owner", "me", "--out", str(out), "--wheels", str(wheels)]
    assert main([*given, "--competition", "exam", *flags]) == 0
    world.mount(out / "wheelhouse", "datasets", "me", "strata-run-wheels")
    return out / "kernel" / "strata.ipynb"


def read_submission(world: KernelWorld) -> dict[str, str]:
    """Predictions by id, of a submission that has every question once."""
    with (world.working / "submission.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "prediction"]
    predicted: dict[str, str] = dict(rows[1:])
    assert list(predicted) == [f"q{number}" for number in range(NUM_QUESTIONS)]
    assert len(rows) == NUM_QUESTIONS + 1
    assert all(len(set(letters.split()) & set("ABCDE")) == 3 for letters in predicted.values())
    return predicted


def strata_of(world: KernelWorld) -> Path:
    """Where the kernel's interpreter has strata from."""
    code = "import strata.engine.types as one; print(one.__file__)"
    command = [str(world.python), "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=world.root, env=clean_environment()
    )
    return Path(done.stdout.strip())


def test_it_runs_from_the_wheels_alone(world, wheels, checkpoint):
    for name in ("tiny", "tiny-two"):
        world.mount(checkpoint("llama-gqa"), "datasets", "me", name)
    process = world.start(write_notebook(world, wheels, STAGES))
    told, _ = process.communicate()
    assert process.returncode == 0, told
    printed = world.printed()
    record = json.loads((world.working / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "done", printed
    assert {stage["num_reached"] for stage in record["measured"]["stages"]} == {NUM_QUESTIONS, 36}
    for words in (
        "the sample submission's",
        "what strata would do",
        "the public stub",
        f"({NUM_QUESTIONS} rows)",
    ):
        assert words in printed
    assert len(set(read_submission(world).values())) > 1
    assert (world.working / "report.html").is_file()
    assert (world.root / "scratch" / "strata-cache").is_dir()
    assert strata_of(world).is_relative_to(world.root / "venv")


def test_a_real_model_answers(world, wheels):
    try:
        model = find_smollm2()
    except InputError as error:
        pytest.skip(str(error))
    world.mount(model, "models", "me", "smollm2", "gguf", "135m", "1", "smollm2.gguf")
    flags = ["--model", "me/smollm2/gguf/135m/1", "--commit-deadline", "30m"]
    process = world.start(write_notebook(world, wheels, REAL, *flags))
    told, _ = process.communicate()
    assert process.returncode == 0, told
    record = json.loads((world.working / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "done", world.printed()
    assert record["measured"]["stages"][0]["num_reached"] == NUM_QUESTIONS
    assert len(set(read_submission(world).values())) > 1


def test_killed_after_the_first_stage_a_whole_submission_is_there(world, wheels, checkpoint):
    for name in ("tiny", "tiny-two"):
        world.mount(checkpoint("llama-gqa"), "datasets", "me", name)
    process = world.start(write_notebook(world, wheels, STAGES))
    while process.poll() is None:
        if has_answers(world):
            process.kill()
            break
        time.sleep(0.005)
    process.communicate()
    record = json.loads((world.working / "run.json").read_text(encoding="utf-8"))
    assert record["status"] != "done"
    assert len(set(read_submission(world).values())) > 1


def has_answers(world: KernelWorld) -> bool:
    """Whether the submission is a stage's; the first cell's has one answer for all questions."""
    file = world.working / "submission.csv"
    answers = file.read_text(encoding="utf-8").splitlines()[1:] if file.is_file() else []
    return len({answer.partition(",")[2] for answer in answers}) > 1


def test_a_run_that_fails_at_once_leaves_the_first_answer(world, wheels):
    process = world.start(write_notebook(world, wheels, STAGES))
    told, _ = process.communicate()
    assert process.returncode == 0, told
    printed = world.printed()
    assert "/kaggle/input/tiny: not below" in printed
    assert "THE RUN ENDED WITH STATUS 2" in printed
    assert set(read_submission(world).values()) == {"A B C"}
    assert "no report.html" in (world.root / "executed.ipynb").read_text(encoding="utf-8")


def test_without_the_wheels_the_first_answer_is_left(world, wheels, tmp_path):
    ours = make_wheel(tmp_path / "ours", "strata_score", "0.1.0")
    notebook = write_notebook(world, wheels, STAGES, "--wheel", str(ours))
    for path in (world.root / "input").rglob("*.whl"):
        path.unlink()
    process = world.start(notebook)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert "NOTHING INSTALLED" in world.printed()
    assert set(read_submission(world).values()) == {"A B C"}
