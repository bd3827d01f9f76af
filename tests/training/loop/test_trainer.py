"""The training loop against a plain loop of torch; evaluations, best weights, an early stop, bad numbers."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from strata.engine.types import RunWarnings
from strata.training.data.batch_order import BatchOrder, step_seed
from strata.training.data.training_set import read_training_set
from strata.training.loop.trainer import Trainer

from ..tiny_reader import TinyReader, planted_questions, saved_weights, tiny_config, train_tiny, write_rows


@pytest.mark.parametrize("task", ["binary", "choice"])
def test_a_planted_signal_is_learned(task, tmp_path):
    valid = write_rows(tmp_path / "valid.jsonl", planted_questions(60, seed=9, prefix="v"))
    write_rows(tmp_path / "train.jsonl", planted_questions(200))
    config = tiny_config(tmp_path, task=task, valid=valid, epochs=6.0, learning_rate=0.2)
    trainer = train_tiny(config)
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
        norm = math.sqrt(sum(float((weight.grad**2).sum()) for weight in (reader.weight, reader.bias)))
        for weight in (reader.weight, reader.bias):
            weight.grad *= min(1.0, config.max_grad_norm / norm)
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
    reader = train_tiny(config).reader
    expected = plain_loop(config)
    assert not torch.allclose(expected.weight, TinyReader(config).weight, atol=0.05)
    torch.testing.assert_close(reader.weight, expected.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(reader.bias, expected.bias, rtol=1e-4, atol=1e-6)
    assert torch.equal(saved_weights(config.out / "adapter")["weight"], reader.weight)


def test_without_a_validation_set_nothing_is_evaluated(tmp_path):
    config = tiny_config(tmp_path, eval_every=1)
    assert all("evaluation" not in line for line in train_tiny(config).lines)
    assert {path.name for path in config.out.iterdir()} == {"adapter", "log.jsonl"}


class ScriptedReader(TinyReader):
    """Scores the right option of the first `right[n]` questions best in its n-th evaluation."""

    def __init__(self, config, right: list[int]) -> None:
        super().__init__(config)
        self.right = right

    def score(self, examples):
        num_right = self.right.pop(0)
        signs = [1 if number < num_right else -1 for number in range(len(examples))]
        return [sign * example.labels for sign, example in zip(signs, examples, strict=True)]


def test_best_weights_are_those_of_the_best_evaluation(tmp_path):
    config = tiny_config(tmp_path, valid_share=0.2, eval_every=2, save_every=0)
    reader = ScriptedReader(config, [3, 6, 6, 5])
    weights = {}
    accumulate = reader.accumulate_gradients

    def remember(batch, *, seed):
        weights[len(weights)] = reader.weight.detach().clone()
        return accumulate(batch, seed=seed)

    reader.accumulate_gradients = remember
    trainer = train_tiny(config, reader)
    assert trainer.progress.best_step == 4
    assert os.readlink(config.out / "best") == "best-4"
    assert [path.name for path in config.out.glob("best-*")] == ["best-4"]
    assert torch.equal(saved_weights(config.out / "best")["weight"], weights[4])
    assert not torch.equal(saved_weights(config.out / "adapter")["weight"], weights[4])


def test_a_run_stops_when_evaluations_get_no_better(tmp_path):
    config = tiny_config(tmp_path, valid_share=0.2, eval_every=1, early_stop=2)
    trainer = train_tiny(config, ScriptedReader(config, [1, 3, 2, 4, 4, 3, 8, 8]))
    assert trainer.has_stopped_early
    assert (trainer.progress.step, trainer.progress.best_step) == (6, 4)
    assert (config.out / "adapter").is_dir()


def test_evaluation_is_of_the_first_questions_in_the_order_of_the_file(tmp_path):
    rows = planted_questions(9, seed=4, prefix="v")
    valid = write_rows(tmp_path / "valid.jsonl", rows)
    config = tiny_config(tmp_path, valid=valid, eval_limit=5, max_steps=1)
    trainer = train_tiny(config)
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
        train_tiny(config, reader)
    for word in words:
        assert word in str(failure.value)
    assert reader.weight.isfinite().all()
    assert not (config.out / "adapter").exists()


def test_a_run_is_evaluated_before_its_first_step(tmp_path):
    """Independent check: a reader that was never trained, measured on the same questions."""
    config = tiny_config(tmp_path, valid_share=0.2, eval_first=True, eval_every=5)
    trainer = train_tiny(config)
    assert [line["step"] for line in trainer.lines if "evaluation" in line] == [0, 5, 8]
    untrained = TinyReader(config)
    fresh = Trainer(config, untrained, read_training_set(config, RunWarnings())).evaluator
    assert trainer.lines[0] == {"step": 0, "evaluation": fresh.evaluate()}
    assert trainer.progress.best_step in (5, 8)
    assert saved_weights(config.out / "adapter").keys() == {"weight", "bias"}
