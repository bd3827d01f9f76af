"""The program `strata`: it says something before it loads anything, and loads no more than it needs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from strata.engine.results.tables import read_scores
from strata.scripts.cli import run_command
from strata.scripts.demo import ADAPTER, MODEL, QUESTIONS_PATH

SAY_FIRST = """
import sys
from strata.scripts import start

def run(command, *, until_exit):
    heavy = {"torch", "transformers", "tyro", "rich", "strata.scripts.cli"} & set(sys.modules)
    print("loaded", *sorted(heavy), file=sys.stderr, flush=True)
    return 0

start.run_stoppable = run
sys.argv = ["strata", *sys.argv[1:]]
start.main()
"""


def lines_on_a_terminal(*arguments: str) -> list[str]:
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", SAY_FIRST, *arguments], stderr=theirs) as process:
        os.close(theirs)
        told = b""
        while chunk := _read(ours):
            told += chunk
        process.wait(timeout=60)
    os.close(ours)
    return told.decode().split("\r\n")[:-1]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""  # Linux says so when the other end is closed


def test_the_first_line_comes_before_anything_is_loaded():
    first, second = lines_on_a_terminal("score", "--model", "m")
    assert first == "strata score: loading libraries and files ..."
    assert second == "loaded"


@pytest.mark.parametrize("arguments", [["--version"], ["score", "--help"], []])
def test_what_is_quick_says_nothing_before(arguments):
    assert lines_on_a_terminal(*arguments) == ["loaded"]


def test_nothing_is_said_where_nobody_looks():
    done = subprocess.run(
        [sys.executable, "-c", SAY_FIRST, "score"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "loaded\n"


TELL_MODULES = """
import gc, json, sys
from strata.engine.results.timeline import Track
from strata.scripts import start

note = Track.note

def tell(self, work, *rest, **others):
    if work == "compute":
        Track.note = note
        searches = sum(generation["collections"] for generation in gc.get_stats())
        print(json.dumps([sorted(sys.modules), searches]), flush=True)
    return note(self, work, *rest, **others)

Track.note = tell
sys.exit(start.main())
"""
"""When the first layer has been computed, prints the modules loaded and how often garbage was looked for."""

NOT_NEEDED = (
    "bitsandbytes",
    "datasets",
    "pandas",
    "peft",
    "plotly",
    "ray",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torchvision",
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> tuple[list[str], int, list[float]]:
    """Modules loaded by `strata score` up to its first layer, searches for garbage, and its scores."""
    out = tmp_path_factory.mktemp("start") / "out"
    command = [sys.executable, "-c", TELL_MODULES, *flags(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    modules, searches = json.loads(done.stdout.splitlines()[0])
    return modules, searches, scores_in(out)


def flags(out) -> list[str]:
    given = {"--model": MODEL, "--adapter": ADAPTER, "--questions": QUESTIONS_PATH, "--out": out}
    given |= {"--limit": 6, "--devices": "cpu", "--dtype": "float32", "--memory-gib": 2}
    return ["score", *(str(text) for pair in given.items() for text in pair)]


def scores_in(out) -> list[float]:
    return [score for row in read_scores(out / "scores.parquet") for score in row.scores]


@pytest.mark.parametrize("name", NOT_NEEDED)
def test_score_loads_no_more_than_it_needs_before_the_first_layer(scored, name):
    modules, *_ = scored
    assert "transformers.modeling_utils" in modules
    assert name not in modules


def test_garbage_is_hardly_looked_for_before_the_first_layer(scored):
    """Python's own thresholds would have it looked for some 700 times, among objects that are all to stay."""
    _, searches, _ = scored
    assert searches < 100


def test_the_same_is_scored_as_with_all_that_transformers_imports(scored, tmp_path):
    assert run_command(flags(tmp_path / "out")) == 0
    assert scored[2] == pytest.approx(scores_in(tmp_path / "out"), abs=1e-6)


COMPILE_LATER = """
import sys
from strata.engine.model_files.light_imports import import_lightly

import_lightly()
import torch
from transformers import LlamaConfig, LlamaForCausalLM

assert not {"torch._dynamo", "scipy", "sympy"} & set(sys.modules)
model = LlamaForCausalLM(LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))
model.generate(torch.tensor([[1, 2]]), max_new_tokens=2)
double = torch.compile(lambda tensor: 2 * tensor, backend="eager")
assert double(torch.ones(2)).tolist() == [2, 2]
assert torch._dynamo.__file__
"""


def test_what_was_left_out_can_be_imported_later():
    done = subprocess.run([sys.executable, "-c", COMPILE_LATER], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
