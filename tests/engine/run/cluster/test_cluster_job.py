"""How batches are shared out and what a lost node costs, with real engines in this process in Ray's place.

`test_ray_score.py` does the same with Ray itself; it takes a minute.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from strata.engine import ray_cluster
from strata.engine.deadline import Deadline
from strata.engine.ray_cluster import Node, RaySettings
from strata.engine.run.cluster import cluster
from strata.engine.run.cluster.job import cut_batches
from strata.engine.run.cluster.worker import BatchWorker
from strata.engine.types import InputError
from strata.scripts.cli import main

from ....sample_questions import QUESTIONS, write_jsonl

NODES = [Node(id=name, host="10.0.0.7", num_cpus=1, num_gpus=0) for name in ("first", "second")]


class ActorError(Exception):
    """Stands for Ray's."""


class TaskError(Exception):
    """Stands for Ray's error of what an actor's method raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"traceback of {cause}")
        self.cause = cause


@dataclass(eq=False)
class InProcess:
    """The part of Ray that is used, calls being made when their result is asked for.

    `lives` tells how many batches each node scores before it is lost; None for all.
    """

    lives: dict[str, int | None] = field(default_factory=dict)
    engines: dict[str, BatchWorker] = field(default_factory=dict)
    shares: list[int] = field(default_factory=list)
    batches: dict[str, list[int]] = field(default_factory=dict)
    ended: list[object] = field(default_factory=list)
    exceptions = SimpleNamespace(
        RayActorError=ActorError,
        ActorUnschedulableError=ActorError,
        RayTaskError=TaskError,
        GetTimeoutError=TimeoutError,
    )

    @property
    def sizes(self) -> list[int]:
        """Of all batches that were scored."""
        return [size for sizes in self.batches.values() for size in sizes]

    def start(self, kind: type, node: Node, config, members, num_engines: int) -> SimpleNamespace:
        """What `start_actor` does."""
        self.shares.append(num_engines)
        engine = self.engines[node.id] = kind(config, members, num_engines)

        def method(name: str) -> SimpleNamespace:
            return SimpleNamespace(remote=lambda *given: lambda: self._call(node, engine, name, given))

        return SimpleNamespace(**{name: method(name) for name in ("start", "plan", "check", "score")})

    def _call(self, node: Node, engine: BatchWorker, name: str, given: tuple) -> object:
        if name == "score":
            left = self.lives.get(node.id)
            if left == 0:
                raise ActorError("its node died")
            self.lives[node.id] = None if left is None else left - 1
        try:
            found = getattr(engine, name)(*given)
        except Exception as error:
            raise (error if isinstance(error, InputError) else TaskError(error)) from error
        if name == "score":
            self.batches.setdefault(node.id, []).append(len(given[0]))
        return found

    def get(self, asked, timeout=None):
        return [call() for call in asked] if isinstance(asked, list) else asked()

    def wait(self, references: list, num_returns: int, timeout: float) -> tuple[list, list]:
        return references[:1], references[1:]

    def end(self, actors, *, connected_here: bool) -> None:
        """What `disconnect` does."""
        assert connected_here
        self.ended += actors


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    fake = InProcess()
    monkeypatch.setitem(sys.modules, "ray", fake)
    for name, replaced in (
        ("connect", lambda address: True),
        ("list_nodes", lambda: NODES),
        ("start_actor", fake.start),
        ("disconnect", fake.end),
    ):
        monkeypatch.setattr(cluster, name, replaced)
    return fake


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    rows = [{**QUESTIONS[number % 4], "id": f"q{number}"} for number in range(10)]
    return write_jsonl(tmp_path / "ten.jsonl", rows)


def tables(run) -> dict:
    return pq.read_table(run.out / "scores.parquet").to_pydict()


@pytest.mark.parametrize("head", ["letters", "loglik"])
def test_a_cluster_scores_what_one_machine_scores(
    score: Callable, checkpoint: Callable[..., Path], ten: Path, in_process: InProcess, head: str
) -> None:
    settings = {"model": checkpoint("llama-gqa"), "questions": ten, "head": head, "deterministic": True}
    alone = score(**settings, probe=True)
    together = score(**settings, probe=True, ray="auto", ray_batch=3)
    assert tables(together) == tables(alone)
    assert (together.out / "submission.csv").read_bytes() == (alone.out / "submission.csv").read_bytes()
    assert sorted(in_process.batches) == ["first", "second"]
    assert sorted(in_process.sizes) == [2, 2, 3, 3]
    assert in_process.shares == [2, 2]
    assert len(in_process.ended) == 2
    measured, expected = together.record["measured"], alone.record["measured"]
    same = ("tokens_computed", "trie_nodes", "tokens_per_option_run", "best_option_counts")
    assert {name: measured[name] for name in same} == {name: expected[name] for name in same}
    assert measured["bytes_read"] > 0
    assert [found["num_tokens"] for found in measured["probe"]] == [16]
    assert together.record["plan"]["cluster"] == {
        "nodes": ["10.0.0.7", "10.0.0.7"],
        "num_batches": 4,
        "batch_questions": 2,
    }
    assert (together.out / "report.html").is_file()


def test_without_deterministic_the_scores_are_nearly_the_same(
    score: Callable, checkpoint: Callable[..., Path], ten: Path, in_process: InProcess
) -> None:
    settings = {"model": checkpoint("llama-gqa"), "questions": ten, "head": "letters"}
    alone, together = score(**settings), score(**settings, ray="auto")
    for mine, theirs in zip(together.scores, alone.scores, strict=True):
        assert mine.question == theirs.question
        assert mine.scores == pytest.approx(theirs.scores, abs=1e-6)


def test_a_way_to_debias_that_learns_from_all_questions_does_so_on_a_cluster(
    score: Callable, checkpoint: Callable[..., Path], ten: Path, in_process: InProcess
) -> None:
    """Pride's prior is of a sample of all questions, whichever node has scored them."""
    settings = {"model": checkpoint("llama-gqa"), "questions": ten, "head": "letters", "debias": "pride"}
    settings |= {"debias_sample": 0.3, "deterministic": True}
    alone, together = score(**settings), score(**settings, ray="auto", ray_batch=3)
    assert tables(together) == tables(alone)


def test_a_batch_whose_node_is_lost_goes_to_another(
    score: Callable, checkpoint: Callable[..., Path], ten: Path, in_process: InProcess
) -> None:
    settings = {"model": checkpoint("llama-gqa"), "questions": ten, "head": "letters", "deterministic": True}
    alone = score(**settings)
    in_process.lives["second"] = 1
    together = score(**settings, ray="auto", ray_batch=2)
    assert tables(together) == tables(alone)
    assert in_process.batches == {"first": [2] * 4, "second": [2]}
    (told,) = together.record["warnings"]["messages"]
    assert told == (
        "a node of the Ray cluster (10.0.0.7) was lost, and its batch scored by another: its node died"
    )
    assert together.record["measured"]["question_per_s"] > 0


@pytest.mark.parametrize("goes_on", ["here", "cluster"])
def test_when_all_nodes_are_lost_resume_keeps_what_was_finished(
    score: Callable,
    checkpoint: Callable[..., Path],
    ten: Path,
    in_process: InProcess,
    tmp_path: Path,
    goes_on: str,
) -> None:
    """Whether a cluster goes on with it or this machine alone."""
    settings = {"model": checkpoint("llama-gqa"), "questions": ten, "head": "letters", "deterministic": True}
    settings |= {"out": tmp_path / "resumed"}
    cluster_of = {"ray": "auto", "ray_batch": 2}
    in_process.lives |= {"first": 1, "second": 1}
    with pytest.raises(OSError, match=r"all nodes of the Ray cluster were lost .*--resume keeps"):
        score(**settings, **cluster_of)
    assert json.loads((tmp_path / "resumed" / "run.json").read_text())["status"] == "failed"
    assert len(in_process.ended) == 2
    in_process.lives.clear()
    resumed = score(**settings, **(cluster_of if goes_on == "cluster" else {}), resume=True)
    assert resumed.record["measured"]["resumed_questions"] == 4
    assert sum(in_process.sizes) == (10 if goes_on == "cluster" else 4)
    alone = score(**settings | {"out": tmp_path / "alone"})
    assert tables(resumed) == tables(alone)


def test_batches_that_would_end_after_the_deadline_are_not_begun(
    score: Callable,
    checkpoint: Callable[..., Path],
    ten: Path,
    in_process: InProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"model": checkpoint("llama-gqa"), "questions": ten, "head": "letters"}
    allowed = iter([True, True, True, False, False, False, False])

    def allows(self: Deadline, longest_s: float) -> bool:
        return self.at_s is None or next(allowed)

    monkeypatch.setattr(Deadline, "allows", allows)
    run = score(**settings, ray="auto", deadline="1h")
    assert sum(in_process.sizes) == 3
    assert run.record["warnings"]["rows"]["not scored before the deadline"]["count"] == 7


def test_a_deadline_that_lets_no_batch_begin_leaves_guesses(
    score: Callable, checkpoint: Callable[..., Path], ten: Path, in_process: InProcess
) -> None:
    run = score(model=checkpoint("llama-gqa"), questions=ten, head="letters", ray="auto", deadline="0.001s")
    assert in_process.sizes == []
    assert run.record["status"] == "done"
    assert run.record["warnings"]["rows"]["not scored before the deadline"]["count"] == 10
    assert run.record["measured"]["tokens_computed"] == 0


def test_what_a_node_raises_reaches_the_caller_as_it_was(
    score: Callable,
    checkpoint: Callable[..., Path],
    ten: Path,
    in_process: InProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self, prompts):
        raise FloatingPointError("question q1: not finite")

    monkeypatch.setattr(BatchWorker, "score", fail)
    with pytest.raises(FloatingPointError, match=r"^question q1: not finite$"):
        score(model=checkpoint("llama-gqa"), questions=ten, head="letters", ray="auto")
    assert len(in_process.ended) == 2


def test_batches_are_of_nearly_one_size() -> None:
    assert [list(batch) for batch in cut_batches(range(7), 3, 2)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [len(batch) for batch in cut_batches(range(5000), 2000, 2)] == [1666, 1667, 1667]
    assert [len(batch) for batch in cut_batches(range(2), 2000, 3)] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ray": "head"}, "--ray: 'head'; expected auto, local or HOST:PORT"),
        ({"ray": "auto", "ray_batch": 0}, "--ray-batch: 0; expected 1 or more"),
    ],
)
def test_settings_that_mean_nothing(settings: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        RaySettings(**settings).check()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'needs Ray; .* pip install "strata-score\[ray\]"'):
        ray_cluster.connect("auto")


def test_a_plan_is_for_one_machine(
    checkpoint: Callable[..., Path], ten: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["plan", "--model", str(checkpoint("llama-gqa")), "--questions", str(ten), "--ray", "auto"]
    assert main(given) == 2
    assert capsys.readouterr().err.startswith("strata: --ray: a plan is for one machine")
