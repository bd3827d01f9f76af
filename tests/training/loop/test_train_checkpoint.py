"""Checkpoints: a run killed anywhere and resumed ends with the very weights of one never stopped."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from strata.engine.files import OutputError
from strata.engine.types import InputError
from strata.training.loop import folders
from strata.training.loop.folders import write_folder_atomically
from strata.training.loop.optimizer import build_optimizer
from strata.training.loop.train_checkpoint import (
    TrainProgress,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    read_state,
    save_checkpoint,
)
from strata.training.types import ParameterGroup

from ..tiny_reader import FILE_NAME, TinyReader, planted_questions, tiny_config, train_tiny, write_rows

ROOT = Path(__file__).parents[3]

# Every case in a process apart, which kills itself when something has happened for the n-th time.
TRAIN_AND_DIE = """
import json
import os
import signal
import sys
from pathlib import Path

import torch

from strata.engine.types import RunWarnings
from strata.training.loop import folders, train_checkpoint
from strata.training.data.training_set import read_training_set
from strata.training.loop.trainer import Trainer
from tests.training.tiny_reader import TinyReader, tiny_config


def train_and_die(folder, changes, where, number):
    config = tiny_config(folder, **changes)
    reader = TinyReader(config)
    owner, name = {
        "step": (reader, "accumulate_gradients"),
        "parameters": (train_checkpoint, "_optimizer_tensors"),
        "rename": (folders, "flush_folder"),
        "save": (reader, "save"),
    }[where]
    original, calls = getattr(owner, name), []

    def act_and_die(*arguments, **named):
        done = original(*arguments, **named)
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, name, act_and_die)
    trainer = Trainer(config, reader, read_training_set(config, RunWarnings()))
    trainer.start()
    trainer.run()


torch.set_num_threads(1)
changes, endings = json.loads(sys.argv[2]), {}
for case, (where, number) in json.loads(sys.argv[3]).items():
    folder = Path(sys.argv[1]) / case
    folder.mkdir()
    child = os.fork()
    if child == 0:
        train_and_die(folder, changes, where, number)
        os._exit(0)
    endings[case] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(endings))
"""
CHANGES = {"valid_share": 0.2, "eval_every": 3, "save_every": 4, "max_steps": 14, "weight_decay": 0.1}
KILLS = {
    "in a step": ("step", 10),
    "while a checkpoint is written": ("parameters", 2),
    "when a checkpoint has its name": ("rename", 2),
    "while the best weights are written": ("save", 1),
}
STEPS_SAVED = {
    "in a step": [4, 8],
    "while a checkpoint is written": [4],
    "when a checkpoint has its name": [4],
    "while the best weights are written": [],
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory, forks) -> tuple[Path, dict[str, int]]:
    """The folder of every killed run, and its exit codes."""
    folder = tmp_path_factory.mktemp("killed")
    done = forks.run(TRAIN_AND_DIE, str(folder), json.dumps(CHANGES), json.dumps(KILLS), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def comparable(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("case", KILLS)
def test_a_killed_run_goes_on_to_the_same_bits(case, killed, tmp_path):
    folder, endings = killed
    assert endings[case] == -signal.SIGKILL
    config = tiny_config(folder / case, **CHANGES)
    assert [read_state(path)[0].step for path in list_checkpoints(config.out)] == STEPS_SAVED[case]
    assert not (config.out / "adapter").exists()
    whole = train_tiny(tiny_config(tmp_path, model=config.model, **CHANGES))
    resumed = train_tiny(replace(config, resume=True))
    for name in ("adapter", "best"):
        ours, theirs = (one.config.out / name / FILE_NAME for one in (resumed, whole))
        assert ours.read_bytes() == theirs.read_bytes()
    assert comparable(resumed.lines) == comparable(whole.lines)
    assert {path.name for path in config.out.iterdir()} == {path.name for path in whole.config.out.iterdir()}


def test_a_finished_run_resumes_to_itself(tmp_path):
    config = tiny_config(tmp_path, **CHANGES)
    first = train_tiny(config)
    before = (config.out / "adapter" / FILE_NAME).read_bytes()
    again = train_tiny(replace(config, resume=True))
    assert (config.out / "adapter" / FILE_NAME).read_bytes() == before
    assert again.progress == first.progress


def test_a_resumed_run_that_has_no_checkpoint_starts_anew(tmp_path):
    config = tiny_config(tmp_path, resume=True, max_steps=2)
    assert train_tiny(config).progress.step == 2


def test_checkpoints_of_an_earlier_run_are_not_overwritten(tmp_path):
    config = tiny_config(tmp_path, **CHANGES)
    train_tiny(config)
    with pytest.raises(InputError, match=r"--out.*--resume"):
        train_tiny(config)


OTHER_RUNS = {
    "a setting": ({"learning_rate": 0.01}, "--learning-rate"),
    "the schedule's length": ({"max_steps": 20}, "--max-steps"),
    "the data": ({"questions": "other.jsonl"}, "--questions"),
    "the validation set": ({"valid_share": 0.3}, "--valid-share"),
    "the model": ({"model": "other"}, "--model"),
    "the template": ({"template": "template.jinja"}, "--template"),
}


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_another_run_is_refused_by_the_field_that_differs(case, tmp_path):
    changes, flag = OTHER_RUNS[case]
    config = tiny_config(tmp_path, **CHANGES)
    train_tiny(config)
    write_rows(tmp_path / "other.jsonl", planted_questions(40, seed=1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "template.jinja").write_text("{{ option }}")
    changes = {name: tmp_path / value if isinstance(value, str) else value for name, value in changes.items()}
    if "template" in changes:
        changes["template"] = str(changes["template"])
    with pytest.raises(InputError, match=f"--resume.*{flag}"):
        train_tiny(replace(config, resume=True, **changes))


def test_a_run_that_computes_in_another_dtype_is_refused(tmp_path):
    """--dtype auto is another one on another device."""
    config = tiny_config(tmp_path, dtype="auto", **CHANGES)
    train_tiny(config)
    reader = TinyReader(config)
    reader.dtype = torch.bfloat16
    with pytest.raises(InputError, match=r"--resume.*--dtype \('float32', now 'bfloat16'\)"):
        train_tiny(replace(config, resume=True), reader)


def test_what_does_not_decide_weights_may_change(tmp_path):
    config = tiny_config(tmp_path, **CHANGES)
    train_tiny(config)
    moved = tmp_path / "moved.jsonl"
    (tmp_path / "train.jsonl").rename(moved)
    changes = {"save_every": 1, "keep_checkpoints": 1, "memory_gib": 2.0, "questions": moved}
    assert train_tiny(replace(config, resume=True, **changes)).progress.step == 14


def make_state(seed: int) -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    """Two parameters and AdamW after three steps."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in (("a.weight", (3, 2)), ("b", (4,)))
    }
    optimizer = build_optimizer([ParameterGroup(parameters=parameters, scale=1.0)], weight_decay=0.0)
    for _ in range(3):
        for weight in parameters.values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return parameters, optimizer


def test_parameters_and_optimizer_come_back_as_they_were(tmp_path):
    parameters, optimizer = make_state(0)
    progress = TrainProgress(step=3, best=0.5, best_step=2, num_evals_without_better=1)
    folder = save_checkpoint(tmp_path, progress, parameters, optimizer, {"seed": 0})
    others, other_optimizer = make_state(1)
    load_checkpoint(folder, others, other_optimizer)
    assert read_state(folder) == (progress, {"seed": 0})
    for name, weight in parameters.items():
        assert torch.equal(others[name], weight)
        saved = other_optimizer.state[others[name]]
        assert saved.keys() == optimizer.state[weight].keys()
        for key, value in optimizer.state[weight].items():
            assert torch.equal(saved[key], value)


def test_parameters_of_another_model_are_refused(tmp_path):
    parameters, optimizer = make_state(0)
    folder = save_checkpoint(tmp_path, TrainProgress(step=3), parameters, optimizer, {})
    renamed = {"a.weight": parameters["a.weight"], "c": parameters["b"]}
    with pytest.raises(ValueError, match=r"parameter 'b' is not in both"):
        load_checkpoint(folder, renamed, optimizer)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    parameters, optimizer = make_state(0)
    for step in (5, 9, 10, 100):
        save_checkpoint(tmp_path, TrainProgress(step=step), parameters, optimizer, {})
    (tmp_path / ".checkpoint-110.1-abc.tmp").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-100",
        "checkpoint-old",
    ]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]


def test_a_full_disk_leaves_the_former_folder_and_no_half_of_a_new_one(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    write_folder_atomically(folder, lambda path: (path / "file").write_text("old"))

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders, "flush_to_disk", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*adapter: No space left"):
        write_folder_atomically(folder, lambda path: (path / "file").write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (folder / "file").read_text() == "old"
    monkeypatch.undo()
    write_folder_atomically(folder, lambda path: (path / "other").write_text("new"))
    assert [path.name for path in folder.iterdir()] == ["other"]
