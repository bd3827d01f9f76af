"""Memory that runs out in a training step: one line, with the smallest step there is; other errors pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strata.engine.memory_errors import MemoryRanOutError
from strata.training.loop.memory_limit import smallest_step, told_when_memory_runs_out
from strata.training.loop.trainer import Trainer

from ..tiny_reader import planted_questions, saved_weights, tiny_config, train_tiny, write_rows

NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes. Error code 12"
)


def test_a_step_that_does_not_fit_is_told_and_the_run_goes_on_later(tmp_path, monkeypatch):
    write_rows(tmp_path / "train.jsonl", planted_questions(60))
    whole = tiny_config(tmp_path, out=tmp_path / "whole", max_steps=6, save_every=2)
    train_tiny(whole)
    config = replace(whole, out=tmp_path / "cut")
    step_of, failing = Trainer._accumulate, [True]

    def accumulate(self, batch, step):
        if step == 4 and failing:
            failing.pop()
            raise RuntimeError(NO_MEMORY)
        return step_of(self, batch, step)

    monkeypatch.setattr(Trainer, "_accumulate", accumulate)
    with pytest.raises(
        MemoryRanOutError, match=r"memory ran out .*--micro-batch-tokens 256.*--resume"
    ) as told:
        train_tiny(config)
    assert len(str(told.value).splitlines()) == 1
    train_tiny(replace(config, resume=True))
    for name, weight in saved_weights(config.out / "adapter").items():
        assert (weight == saved_weights(whole.out / "adapter")[name]).all()


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, ["--micro-batch-tokens 256", "--streamed (a decoder)"]),
        ({"micro_batch_tokens": 100}, ["--streamed (a decoder)"]),
        ({"micro_batch_tokens": 100, "streamed": True}, ["--boundary-store disk"]),
        ({"micro_batch_tokens": 100, "streamed": True, "boundary_store": "disk"}, []),
        ({"micro_batch_tokens": 512, "full": True}, ["--micro-batch-tokens 256", "--gradient-checkpointing"]),
    ],
)
def test_the_smallest_step_is_what_a_run_lacks(given, flags, tmp_path):
    assert smallest_step(tiny_config(tmp_path, **given)) == flags


def test_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match="shapes differ"), told_when_memory_runs_out(tiny_config(tmp_path)):
        raise RuntimeError("shapes differ")
