"""The training loop against a plain loop of torch's own, and what it does beside: best, stops, curves."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from strata.engine.types import InputError, RunWarnings
from strata.training.data.batch_order import BatchOrder, step_seed
from strata.training.data.training_set import read_training_set
from strata.training.loop.optimizer import parameters_by_name
from strata.training.loop.schedule import learning_rate_factor
from strata.training.loop.train_log import check_sinks
from strata.training.loop.trainer import Trainer

from ..tiny_reader import TinyReader, planted_questions, saved_weights, tiny_config, write_rows

ROOT = Path(__file__).parents[3]


def train(config, reader=None) -> Trainer:
    reader = TinyReader(config) if reader is None else reader
    trainer = Trainer(config, reader, read_training_set(config, RunWarnings()))
    trainer.start()
    trainer.run()
    return trainer


def read_log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["binary", "choice"])
def test_a_planted_signal_is_learned(task, tmp_path):
    valid = write_rows(tmp_path / "valid.jsonl", planted_questions(60, seed=9, prefix="v"))
    write_rows(tmp_path / "train.jsonl", planted_questions(200))
    config = tiny_config(tmp_path, task=task, valid=valid, epochs=6.0, learning_rate=0.2)
    trainer = train(config)
    found = trainer.lines[-1]["evaluation"]
    assert found["map_at_3"] >= 0.98
    assert found["heuristics"]["uniform_map_at_3"] < 0.8
    assert found["num_examples"] == 60
    assert trainer.lines[-1]["loss"] < trainer.lines[0]["loss"]


def plain_loop(config) -> TinyReader:
    """The same training as slowly and plainly as can be: one question, one option at a time."""
    reader = TinyReader(config)
    source = read_training_set(config, RunWarnings()).train
    groups = [
        {"params": [reader.weight], "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": [reader.bias], "weight_decay": 0.0, "scale": config.head_lr_scale},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    order = BatchOrder(num_examples=len(source), batch_size=config.batch_questions, seed=config.seed)
    for step in range(config.max_steps):
        epoch, indices = order.batch(step)
        examples = source.read(reader, indices, epoch=epoch)
        generator = torch.Generator().manual_seed(step_seed(config.seed, step, 0))
        losses = []
        for example in examples:
            counts = reader.drop(reader.counts(example), generator)
            for row, label in enumerate(example.labels):
                score = (counts[row] * reader.weight[:, 0]).sum() + reader.bias[0]
                losses.append(F.binary_cross_entropy_with_logits(score, torch.tensor(label).float()))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        norm = math.sqrt(sum(float((own.grad**2).sum()) for own in (reader.weight, reader.bias)))
        for own in (reader.weight, reader.bias):
            own.grad *= min(1.0, config.max_grad_norm / norm)
        warmup = int(config.warmup_share * config.max_steps)
        rise = (step + 1) / max(warmup, 1)
        fall = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (config.max_steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * group["scale"] * (rise if step < warmup else fall)
        optimizer.step()
    return reader


def test_a_run_equals_a_plain_loop(tmp_path):
    config = tiny_config(
        tmp_path, max_steps=13, batch_questions=7, warmup_share=0.3, weight_decay=0.1, max_grad_norm=0.05
    )
    reader = train(config).reader
    expected = plain_loop(config)
    assert not torch.allclose(expected.weight, TinyReader(config).weight, atol=0.05)
    torch.testing.assert_close(reader.weight, expected.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(reader.bias, expected.bias, rtol=1e-4, atol=1e-6)
    assert torch.equal(saved_weights(config.out / "adapter")["weight"], reader.weight)


def test_a_long_gradient_is_scaled_and_a_zero_bound_leaves_it(tmp_path):
    free = train(tiny_config(tmp_path, out=tmp_path / "free", max_grad_norm=0.0)).lines
    tight = train(tiny_config(tmp_path, out=tmp_path / "tight", max_grad_norm=1e-9)).lines
    assert tight[0]["grad_norm"] == free[0]["grad_norm"] > 1e-3
    assert tight[-1]["loss"] != free[-1]["loss"]


def factors(schedule: str, num_steps: int, num_warmup_steps: int) -> list[float]:
    return [
        learning_rate_factor(step, num_steps=num_steps, num_warmup_steps=num_warmup_steps, schedule=schedule)
        for step in range(num_steps)
    ]


def test_learning_rates():
    assert factors("constant", 4, 2) == [0.5, 1.0, 1.0, 1.0]
    assert factors("linear", 6, 2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert factors("cosine", 5, 1) == pytest.approx([1.0, 1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])
    assert factors("cosine", 1, 0) == [1.0]


def test_a_line_a_step_is_logged(tmp_path):
    config = tiny_config(tmp_path, valid_share=0.2, eval_every=3)
    trainer = train(config)
    lines = read_log(config.out)
    assert lines == trainer.lines
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["step"] for line in lines if "evaluation" in line] == [3, 6, 8]
    assert [line["examples"] for line in lines] == [8, 8, 8, 8] * 2
    assert [line["epoch"] for line in lines] == [0] * 4 + [1] * 4


def test_without_a_validation_set_nothing_is_evaluated(tmp_path):
    config = tiny_config(tmp_path, eval_every=1)
    assert all("evaluation" not in line for line in train(config).lines)
    assert {path.name for path in config.out.iterdir()} == {"adapter", "log.jsonl"}


class ScriptedReader(TinyReader):
    """Scores the right option of the first `right[n]` questions best in its n-th evaluation."""

    def __init__(self, config, right: list[int]) -> None:
        super().__init__(config)
        self.right = right

    def score(self, examples):
        num_right = self.right.pop(0)
        signs = [1 if number < num_right else -1 for number in range(len(examples))]
        return [sign * own.labels for sign, own in zip(signs, examples, strict=True)]


def test_best_weights_are_those_of_the_best_evaluation(tmp_path):
    config = tiny_config(tmp_path, valid_share=0.2, eval_every=2, save_every=0)
    reader = ScriptedReader(config, [3, 6, 6, 5])
    weights = {}
    accumulate = reader.accumulate_gradients

    def remember(batch, *, seed):
        weights[len(weights)] = reader.weight.detach().clone()
        return accumulate(batch, seed=seed)

    reader.accumulate_gradients = remember
    trainer = train(config, reader)
    assert trainer.progress.best_step == 4
    assert os.readlink(config.out / "best") == "best-4"
    assert [path.name for path in config.out.glob("best-*")] == ["best-4"]
    assert torch.equal(saved_weights(config.out / "best")["weight"], weights[4])
    assert not torch.equal(saved_weights(config.out / "adapter")["weight"], weights[4])


def test_a_run_stops_when_evaluations_get_no_better(tmp_path):
    config = tiny_config(tmp_path, valid_share=0.2, eval_every=1, early_stop=2)
    trainer = train(config, ScriptedReader(config, [1, 3, 2, 4, 4, 3, 8, 8]))
    assert trainer.has_stopped_early
    assert (trainer.progress.step, trainer.progress.best_step) == (6, 4)
    assert (config.out / "adapter").is_dir()


def test_evaluation_is_of_the_first_questions_in_the_order_of_the_file(tmp_path):
    rows = planted_questions(9, seed=4, prefix="v")
    valid = write_rows(tmp_path / "valid.jsonl", rows)
    config = tiny_config(tmp_path, valid=valid, eval_limit=5, max_steps=1)
    trainer = train(config)
    shown = [example.prompt.question for example in trainer.evaluator.examples]
    assert [question.id for question in shown] == [row["id"] for row in rows[:5]]
    assert [list(question.options) for question in shown] == [row["options"] for row in rows[:5]]


class BrokenReader(TinyReader):
    """Its gradient, loss or score is not a number from the third call on."""

    def __init__(self, config, what: str) -> None:
        super().__init__(config)
        self.what, self.num_calls = what, 0

    def accumulate_gradients(self, batch, *, seed):
        loss = super().accumulate_gradients(batch, seed=seed)
        self.num_calls += 1
        if self.what == "gradient" and self.num_calls == 3:
            self.weight.grad[5] = float("inf")
        return float("nan") if self.what == "loss" and self.num_calls == 3 else loss

    def score(self, examples):
        scores = super().score(examples)
        if self.what == "score":
            scores[2][1] = np.nan
        return scores


@pytest.mark.parametrize(
    ("what", "words"),
    [("gradient", ["step 3", "weight"]), ("loss", ["step 3", "loss"]), ("score", ["validation question 'q"])],
)
def test_numbers_that_are_not_finite_end_the_run_and_name_the_place(what, words, tmp_path):
    config = tiny_config(tmp_path, valid_share=0.2, eval_every=4)
    reader = BrokenReader(config, what)
    with pytest.raises(FloatingPointError) as failure:
        train(config, reader)
    for word in words:
        assert word in str(failure.value)
    assert reader.weight.isfinite().all()
    assert not (config.out / "adapter").exists()


def test_parameters_of_one_name_are_refused(tmp_path):
    groups = TinyReader(tiny_config(tmp_path)).parameter_groups()
    with pytest.raises(ValueError, match="'weight' is in two groups"):
        parameters_by_name([*groups, groups[0]])
    with pytest.raises(ValueError, match="has none"):
        parameters_by_name([])


def test_weights_and_biases_is_told_every_step(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: told.append((step, numbers)), finish=lambda: told.append("finished")
    )
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = types.SimpleNamespace()
    wandb.init = lambda **settings: told.append(settings) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(tiny_config(tmp_path, max_steps=2, valid_share=0.2, wandb="science"))
    assert told[0]["project"] == "science"
    assert told[0]["config"]["max_steps"] == 2
    assert [step for step, _ in told[1:-1]] == [1, 2]
    assert told[2][1]["evaluation/map_at_3"] > 0
    assert told[-1] == "finished"


def test_a_logger_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for changes, flag in (({"wandb": "science"}, "--wandb"), ({"tensorboard": "yes"}, "--tensorboard")):
        with pytest.raises(InputError, match=flag):
            check_sinks(tiny_config(tmp_path, **changes))
    check_sinks(tiny_config(tmp_path, tensorboard="auto"))


def test_tensorboard_gets_the_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tmp_path, max_steps=3, valid_share=0.2, tensorboard="yes")
    trainer = train(config)
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in trainer.lines}, rel=1e-6)
    assert [event.step for event in events.Scalars("evaluation/map_at_3")] == [3]


TRAIN_IN_A_PROCESS = """
import json
import sys
from pathlib import Path

import torch

from strata.engine.types import RunWarnings
from strata.scripts.train import open_processes
from strata.training.data.training_set import read_training_set
from strata.training.loop.trainer import Trainer
from tests.training.tiny_reader import TinyReader, tiny_config

torch.set_num_threads(1)
folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, changed in changes.items():
    config = tiny_config(folder, **changed, out=folder / f"{name}-two")
    processes = open_processes(config)
    assert processes.num_processes == 2
    reader = TinyReader(config)
    with torch.no_grad():
        reader.weight += processes.process_index  # the main process's values count
    trainer = Trainer(config, reader, read_training_set(config, RunWarnings()), processes)
    trainer.start()
    trainer.run()
    torch.save(reader.weight.detach(), folder / f"{name}-{processes.process_index}.pt")
torch.distributed.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


SHARED_RUNS = {
    # 32 questions in batches of 7, the last of 4; options of different numbers are shared unequally too.
    "unequal": {
        "batch_questions": 7,
        "valid_share": 0.2,
        "eval_every": 3,
        "save_every": 4,
        "lora_dropout": 0.0,
    },
    "nothing for the second": {"batch_questions": 1, "limit": 3, "lora_dropout": 0.0},
}


def start_process(folder: Path, rank: int, port: int) -> subprocess.Popen:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", TRAIN_IN_A_PROCESS, str(folder), json.dumps(SHARED_RUNS)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def test_two_processes_train_what_one_does(tmp_path):
    alone = {
        name: train(tiny_config(tmp_path, **changes, out=tmp_path / name))
        for name, changes in SHARED_RUNS.items()
    }
    port = free_port()
    both = [start_process(tmp_path, rank, port) for rank in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    for name, one in alone.items():
        weights = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)]
        assert torch.equal(*weights)
        torch.testing.assert_close(weights[0], one.reader.weight.detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(saved_weights(tmp_path / f"{name}-two" / "adapter")["weight"], weights[0])
        lines = read_log(tmp_path / f"{name}-two")
        assert [line["step"] for line in lines] == [line["step"] for line in one.lines]
        for own, other in zip(lines, one.lines, strict=True):
            assert own["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert own.get("evaluation", {}).get("map_at_3") == other.get("evaluation", {}).get("map_at_3")
