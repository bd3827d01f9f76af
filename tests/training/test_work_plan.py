"""`strata train --plan`: the work of a step against torch's own count of it, and how seconds add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from strata.engine.machine.rates import LayerRates, MachineRates
from strata.engine.types import RunWarnings
from strata.scripts.cli import main
from strata.training.config import TrainConfig
from strata.training.data.batch_order import BatchOrder
from strata.training.data.training_set import read_training_set
from strata.training.open_reader import open_reader
from strata.training.run_plan import plan_run
from strata.training.work_plan import BatchWork, count_evaluations, plan_work

from .tiny_reader import planted_questions, write_rows

RATES = MachineRates(
    gemm_flop_per_s=1e9,
    disk_bytes_per_s=1e6,
    layer=LayerRates(linear_flop_per_s=1e9, attention_flop_per_s=1e8),
    rates_from="planted",
)
BATCH = BatchWork(
    questions=4,
    tokens=100,
    gemm_flops=2e9,
    attention_flops=1e8,
    trained_weights=1000,
    layer_bytes=3_000_000,
)


@pytest.fixture
def config(checkpoint, tmp_path) -> TrainConfig:
    questions = write_rows(tmp_path / "train.jsonl", planted_questions(8))
    return TrainConfig(
        model=checkpoint("llama-gqa"),
        out=tmp_path / "out",
        questions=questions,
        task="choice",
        batch_questions=8,
        devices="cpu",
        lora_r=2,
        eval_first=False,
    )


@pytest.mark.parametrize(
    "change", [{}, {"gradient_checkpointing": True}, {"streamed": True}, {"full": True}], ids=str
)
def test_the_work_of_a_step_is_what_torch_counts(change, config):
    """Independent check: torch's FlopCounterMode around a real step. Masked keys of tiles are not planned."""
    config = replace(config, **change)
    data = read_training_set(config, RunWarnings())
    plan = plan_run(config, data).work
    reader = open_reader(config)
    _, indices = BatchOrder(num_examples=8, batch_size=8, seed=0).batch(0)
    batch = data.train.read(reader, indices, epoch=0)
    with FlopCounterMode(display=False) as counter:
        reader.accumulate_gradients(batch, seed=0)
    assert plan.step_flops == pytest.approx(counter.get_total_flops(), rel=0.25)


def test_seconds_add_up():
    config = TrainConfig(model="m", out="o", questions="q", eval_every=10)
    plan = plan_work(config, BATCH, RATES, num_steps=30, num_valid=8)
    lora_s = 6 * 1000 * 100 / 1e9
    assert plan.step_s == pytest.approx(2 * 2 + lora_s + 3 * 1)
    assert plan.evaluation_s == pytest.approx(2 * (2 + 1))
    assert plan.total_s == pytest.approx(30 * plan.step_s + 4 * plan.evaluation_s)
    streamed = plan_work(replace(config, streamed=True), BATCH, RATES, num_steps=30, num_valid=0)
    assert (streamed.step_read_s, streamed.num_evaluations) == (6.0, 0)
    assert streamed.step_compute_s == pytest.approx(3 * 2 + lora_s + 4 * 1)


@pytest.mark.parametrize(
    ("every", "first", "steps", "expected"), [(10, True, 30, 4), (10, True, 35, 5), (0, False, 30, 1)]
)
def test_evaluations_are_counted(every, first, steps, expected):
    config = TrainConfig(model="m", out="o", eval_every=every, eval_first=first)
    assert count_evaluations(config, steps) == expected


def test_the_plan_is_printed_with_time_and_tokens(config, capsys):
    arguments = ["--model", str(config.model), "--questions", str(config.questions), "--out", str(config.out)]
    assert main(["train", *arguments, "--valid-share", "0.25", "--epochs", "3", "--plan"]) == 0
    told = {line[:40].strip(): line[40:].strip() for line in capsys.readouterr().out.splitlines()}
    assert told["steps"] == "3 of 6 question(s)"
    assert told["evaluations"].startswith("2 of 2 question(s), ")
    assert told["work a step"].endswith("FLOP")
    assert {"tokens a step", "tokens in all", "computed at", "time a step", "time in all"} <= told.keys()
