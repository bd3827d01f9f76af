"""Several processes that share a batch train what one alone does."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from strata.engine.types import RunWarnings
from strata.training.data.training_set import read_training_set
from strata.training.loop import evaluation
from strata.training.loop.processes import OneProcess

from ...processes.fork_server import ForkedProcess, ForkServer
from ..tiny_reader import (
    TinyReader,
    planted_questions,
    read_log,
    saved_weights,
    tiny_config,
    train_tiny,
    write_rows,
)

ROOT = Path(__file__).parents[3]

TRAIN_IN_A_PROCESS = """
import json
import sys
from pathlib import Path

import torch

from strata.engine.types import RunWarnings
from strata.training.data.training_set import read_training_set
from strata.training.loop.processes import open_processes
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


def test_a_process_without_an_example_asks_its_reader_nothing(tmp_path, monkeypatch):
    """Four processes evaluate on three examples; a reader packs one example at least."""

    class NeverEmpty(TinyReader):
        def score(self, examples):
            assert examples
            return super().score(examples)

    write_rows(tmp_path / "train.jsonl", planted_questions(9))
    config = tiny_config(tmp_path)
    source, found = read_training_set(config, RunWarnings()).train, []
    monkeypatch.setattr(evaluation, "gather_shares", lambda share, processes: found.extend(share) or found[:])
    reader, processes = NeverEmpty(config), OneProcess(num_processes=4, process_index=3)
    evaluator = evaluation.Evaluator(reader, source, limit=3, task="binary", processes=processes)
    found += reader.score(evaluator.examples)
    assert evaluator.evaluate()["num_examples"] == 3


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


def start_process(forks: ForkServer, folder: Path, rank: int, port: int) -> ForkedProcess:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    arguments = str(folder), json.dumps(SHARED_RUNS)
    return forks.start(TRAIN_IN_A_PROCESS, *arguments, cwd=ROOT, environment=environment)


def test_two_processes_train_what_one_does(tmp_path, forks):
    alone = {
        name: train_tiny(tiny_config(tmp_path, **changes, out=tmp_path / name))
        for name, changes in SHARED_RUNS.items()
    }
    port = free_port()
    both = [start_process(forks, tmp_path, rank, port) for rank in range(2)]
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
        for line, expected in zip(lines, one.lines, strict=True):
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert ("evaluation" in line) == ("evaluation" in expected)
            if "evaluation" in line:
                assert line["evaluation"].get("map_at_3") == expected["evaluation"].get("map_at_3")
