"""`strata score --ray` over two local Ray nodes against the same run on one machine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from strata.engine.results.partial_scores import PartialScores
from strata.scripts.cli import main

from ....ray_nodes import (
    LocalCluster,
    actors,
    assert_ended,
    assert_only_this_machine_is_listened_to,
    ray_on_loopback,
    two_nodes,
)
from ....sample_questions import QUESTIONS, write_jsonl

__all__ = ["ray_on_loopback", "two_nodes"]

pytestmark = [pytest.mark.usefixtures("fixed_rates"), pytest.mark.slow, pytest.mark.timeout(900)]
NUM_QUESTIONS = 24


@pytest.fixture
def score(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., int]:
    """`score(out, *flags)`: `strata score` of 24 questions, deterministic."""
    rows = [{**QUESTIONS[number % 4], "id": f"q{number}"} for number in range(NUM_QUESTIONS)]
    file = write_jsonl(tmp_path / "questions.jsonl", rows)
    given = [
        "--model",
        checkpoint("llama-gqa"),
        "--questions",
        file,
        "--devices",
        "cpu",
        "--dtype",
        "float32",
    ]
    given += ["--head", "letters", "--deterministic"]
    return lambda out, *flags: main(
        ["score", *map(str, given), "--out", str(tmp_path / out), *map(str, flags)]
    )


def table_of(folder: Path) -> dict[str, list]:
    return pq.read_table(folder / "scores.parquet").to_pydict()


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def test_two_nodes_score_what_one_machine_scores_though_one_is_killed(
    score: Callable[..., int], tmp_path: Path, two_nodes: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked against the run without a cluster, bit for bit, and by counting what was scored."""
    import ray

    kept: list[str] = []
    running: list[psutil.Process] = []
    add = PartialScores.add

    def add_and_kill(self, rows) -> None:
        kept.extend(row.question.id for row in rows)
        add(self, rows)
        if len(kept) >= 6 and not running:
            running.extend(actors("BatchWorker"))
            assert_only_this_machine_is_listened_to()
            two_nodes.kill_second()

    assert score("alone") == 0
    monkeypatch.setattr(PartialScores, "add", add_and_kill)
    assert score("together", "--ray", two_nodes.address, "--ray-batch", 2) == 0
    assert len(running) == 2
    assert sorted(kept) == sorted(f"q{number}" for number in range(NUM_QUESTIONS))
    assert table_of(tmp_path / "together") == table_of(tmp_path / "alone")
    names = ("submission.csv",)
    assert all(
        (tmp_path / "together" / n).read_bytes() == (tmp_path / "alone" / n).read_bytes() for n in names
    )
    together, alone = record_of(tmp_path / "together"), record_of(tmp_path / "alone")
    assert together["status"] == "done"
    assert together["plan"]["cluster"] == {
        "nodes": ["127.0.0.1", "127.0.0.1"],
        "num_batches": 12,
        "batch_questions": 2,
    }
    assert together["metrics"] == alone["metrics"]
    assert together["measured"]["tokens_computed"] == alone["measured"]["tokens_computed"]
    (lost,) = [text for text in together["warnings"]["messages"] if "was lost" in text]
    assert "(127.0.0.1) was lost, and its batch scored by another" in lost
    assert not ray.is_initialized()
    assert_ended(running)


def test_finished_batches_are_not_scored_again(
    score: Callable[..., int], tmp_path: Path, two_nodes: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT and SIGTERM (which Ray takes for itself) leave a record and no actor; --resume goes on."""
    two_nodes.add_second()
    add, kept, running = PartialScores.add, [], []
    stops = {4: signal.SIGINT, 8: signal.SIGTERM}

    def add_and_stop(self, rows) -> None:
        kept.extend(row.question.id for row in rows)
        add(self, rows)
        if stop := stops.pop(len(kept), None):
            running.extend(actors("BatchWorker"))
            os.kill(os.getpid(), stop)
            time.sleep(5)

    monkeypatch.setattr(PartialScores, "add", add_and_stop)
    flags = ("--resume", "--ray", two_nodes.address, "--ray-batch", 2)
    for status in (130, 143):
        assert score("run", *flags) == status
        assert record_of(tmp_path / "run")["status"] == "interrupted"
        assert len(running) == 2
        assert_ended(running)
        running.clear()
    assert score("run", *flags) == 0
    assert sorted(kept) == sorted(f"q{number}" for number in range(NUM_QUESTIONS))
    assert record_of(tmp_path / "run")["measured"]["resumed_questions"] == 8
    monkeypatch.setattr(PartialScores, "add", add)
    assert score("alone") == 0
    assert table_of(tmp_path / "run") == table_of(tmp_path / "alone")


def test_what_a_node_says_of_its_input_is_one_line(
    score: Callable[..., int], two_nodes: LocalCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    two_nodes.add_second()
    assert score("small", "--ray", two_nodes.address, "--memory-gib", "0.000001") == 2
    told = capsys.readouterr().err
    assert told.startswith("strata: --memory-gib")
    assert told.count("\n") == 1
    assert not (tmp_path / "small").exists() or not list((tmp_path / "small").glob("*.json"))
