"""Ctrl-C at any moment keeps the steps that are done; the resumed run ends as one that was never stopped."""

from __future__ import annotations

import pytest
import torch

from strata.engine.types import RunWarnings
from strata.training.data.training_set import read_training_set
from strata.training.loop.trainer import Trainer

from ..tiny_reader import TinyReader, read_log, saved_weights, tiny_config, train_tiny


class StoppedReader(TinyReader):
    """Is interrupted at a call of one of its methods."""

    def __init__(self, config, method: str, call: int) -> None:
        super().__init__(config)
        self.method, self.calls_left = method, call

    def _count(self, method: str) -> None:
        if method == self.method:
            self.calls_left -= 1
            if self.calls_left == 0:
                raise KeyboardInterrupt

    def accumulate_gradients(self, batch, *, seed):
        self._count("accumulate_gradients")
        return super().accumulate_gradients(batch, seed=seed)

    def score(self, examples):
        self._count("score")
        return super().score(examples)

    def save(self, folder):
        self._count("save")
        super().save(folder)


def comparable(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


# Evaluations: before the first step, then after steps 2, 4, 6 and 8.
@pytest.mark.parametrize(
    ("method", "call", "step"),
    [("accumulate_gradients", 4, 3), ("score", 2, 2), ("score", 4, 6), ("save", 1, 2)],
)
def test_a_stopped_run_goes_on_to_the_same_end(method, call, step, tmp_path):
    settings = {"valid_share": 0.2, "eval_first": True, "eval_every": 2, "save_every": 0}
    whole = train_tiny(tiny_config(tmp_path, out=tmp_path / "whole", **settings))
    config = tiny_config(tmp_path, out=tmp_path / "stopped", **settings)
    with pytest.raises(KeyboardInterrupt, match=f"checkpoint-{step} is whole; .*--resume"):
        train_tiny(config, StoppedReader(config, method, call))
    resumed = train_tiny(tiny_config(tmp_path, out=tmp_path / "stopped", resume=True, **settings))
    assert comparable(read_log(config.out)) == comparable(read_log(tmp_path / "whole"))
    assert resumed.progress == whole.progress
    for name in ("adapter", "best"):
        expected = saved_weights(tmp_path / "whole" / name)
        found = saved_weights(config.out / name)
        assert all(torch.equal(weight, expected[key]) for key, weight in found.items())


@pytest.mark.parametrize(("method", "call"), [("score", 1), ("accumulate_gradients", 1)])
def test_before_the_first_step_there_is_nothing_to_keep(method, call, tmp_path):
    config = tiny_config(tmp_path, valid_share=0.2, eval_first=True)
    with pytest.raises(KeyboardInterrupt) as stop:
        train_tiny(config, StoppedReader(config, method, call))
    assert str(stop.value) == ""
    assert not list(config.out.glob("checkpoint-*"))


def test_parameters_in_the_middle_of_an_update_are_not_kept(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, save_every=2)
    reader = TinyReader(config)
    trainer = Trainer(config, reader, read_training_set(config, RunWarnings()))
    trainer.start()
    step, calls = trainer.optimizer.step, []

    def stop_in_the_fourth():
        calls.append(1)
        step()
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.optimizer, "step", stop_in_the_fourth)
    with pytest.raises(KeyboardInterrupt, match="checkpoint-2 is whole"):
        trainer.run()
    assert [path.name for path in config.out.glob("checkpoint-*")] == ["checkpoint-2"]
