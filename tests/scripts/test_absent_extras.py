"""Where a package of an extra is absent, a command that needs it says so in one line that names the extra."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..tiny_gguf import write_tiny_gguf

PACKAGES = (
    *(
        "bitsandbytes",
        "bm25s",
        "compressed_tensors",
        "datasketch",
        "gguf",
        "ir_measures",
        "lm_eval",
        "nbformat",
    ),
    *("numba", "peft", "rapidfuzz", "ray", "sentence_transformers", "sklearn", "tantivy", "tensorboard"),
)
RUN_WITHOUT = """
import contextlib, io, json, sys
packages, commands = json.loads(sys.argv[1])
# As if they were not installed: an import fails, and find_spec finds nothing.
sys.modules.update(dict.fromkeys(packages))
from strata.scripts.cli import main

told = {}
for name, command in commands.items():
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = main(command)
    told[name] = [status, errors.getvalue()]
print(json.dumps(told))
"""
EXTRAS = {
    "index": "retrieval",
    "search": "retrieval",
    "run": "retrieval",
    "demo": "retrieval",
    "probe": "retrieval",
    "train": "train",
    "score a GGUF file": "gguf",
    "kaggle": "kaggle",
    "run, calibrated": "calibration",
    "score over a cluster": "ray",
    "lm-eval": "lm-eval",
}
PIPELINE = """\
retrieval: {{wiki: {{index: index}}}}
members: {{one: {{model: {model}, head: letters, context: wiki}}}}
"""


@pytest.fixture(scope="module")
def told(checkpoint, questions, tmp_path_factory) -> dict[str, list]:
    """Status and errors of every command, of one fresh process without the packages."""
    folder = tmp_path_factory.mktemp("absent")
    model = str(checkpoint("llama-gqa"))
    (folder / "run.yaml").write_text(PIPELINE.format(model=model))
    fitted = f"members: {{one: {{model: {model}, head: letters}}}}\ncalibration: isotonic\n"
    (folder / "fit.yaml").write_text(fitted)
    (folder / "passages.jsonl").write_text('{"id": "1", "title": "a", "text": "b"}\n')
    gguf = write_tiny_gguf(folder / "tiny.gguf", family="llama")
    asked = ["--questions", str(questions)]
    commands = {
        "index": ["index", "--corpus", "passages.jsonl", "--out", "index"],
        "search": ["search", "--index", "index", *asked, "--out", "found.csv"],
        "run": ["run", "run.yaml", *asked, "--out", "run"],
        "demo": ["demo", "--out", "demo"],
        "probe": ["probe", "--model", model, *asked, "--out", "probe"],
        "train": ["train", "--model", model, *asked, "--out", "trained"],
        "score a GGUF file": ["score", "--model", str(gguf), *asked, "--out", "scored"],
        "kaggle": ["kaggle", "fit.yaml", "--owner", "me", "--out", "kaggle"],
        "run, calibrated": ["run", "fit.yaml", *asked, "--out", "fitted"],
        "score over a cluster": ["score", "--model", model, *asked, "--out", "shared", "--ray", "local"],
        "lm-eval": ["lm-eval", "--model", "strata", "--tasks", "few"],
    }
    command = [sys.executable, "-c", RUN_WITHOUT, json.dumps([PACKAGES, commands])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", EXTRAS)
def test_one_line_names_the_extra(name, told):
    status, errors = told[name]
    lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert status == 2, errors
    assert len(lines) == 1
    assert lines[0].startswith("strata: ")
    assert f'pip install "strata-score[{EXTRAS[name]}]"' in lines[0]


def test_the_extras_that_are_named_exist():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = text.split("[project.optional-dependencies]\n")[1]
    assert [name for name in EXTRAS.values() if f"\n{name} = [" not in "\n" + extras] == []
