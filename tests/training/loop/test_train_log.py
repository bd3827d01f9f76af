"""Where the numbers of a run go: log.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import sys
import types

import pytest

from strata.engine.types import InputError
from strata.training.loop.train_log import StepLog, check_sinks

from ..tiny_reader import read_log, tiny_config, train_tiny


def test_a_line_a_step_is_logged(tmp_path):
    config = tiny_config(tmp_path, valid_share=0.2, eval_every=3)
    trainer = train_tiny(config)
    lines = read_log(config.out)
    assert lines == trainer.lines
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["step"] for line in lines if "evaluation" in line] == [3, 6, 8]
    assert [line["examples"] for line in lines] == [8, 8, 8, 8] * 2
    assert [line["epoch"] for line in lines] == [0] * 4 + [1] * 4


def test_weights_and_biases_is_told_every_step(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: told.append((step, numbers)), finish=lambda: told.append("finished")
    )
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = types.SimpleNamespace()
    wandb.init = lambda **settings: told.append(settings) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train_tiny(tiny_config(tmp_path, max_steps=2, valid_share=0.2, wandb="science"))
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
    trainer = train_tiny(config)
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in trainer.lines}, rel=1e-6)
    assert [event.step for event in events.Scalars("evaluation/map_at_3")] == [3]


@pytest.mark.parametrize("line", ['{"loss": 1}', "{", '{"step": "2"}', "[]", ""])
def test_a_damaged_line_is_told_by_its_number(line, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(InputError, match=r"log\.jsonl, line 2: "):
        StepLog(path, 3)


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    log = StepLog(path, 3)
    log.write(2, {})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
