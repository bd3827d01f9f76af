"""Rows of Ray Data against the library on the same questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, Question
from strata.scripts.bridges import ray_data
from strata.scripts.bridges.ray_data import StrataBatchScorer

from ...ray_nodes import LocalCluster, ray_on_loopback, two_nodes
from ...sample_questions import QUESTIONS

__all__ = ["ray_on_loopback", "two_nodes"]

pytestmark = pytest.mark.usefixtures("fixed_rates")
MACHINE = MachineSettings(devices="cpu", dtype="float32")
APART = PlanOverrides(deterministic=True)


def rows(count: int) -> list[dict]:
    return [{**QUESTIONS[number % 4], "id": f"q{number}"} for number in range(count)]


def batch_of(table: list[dict]) -> dict[str, np.ndarray]:
    """As Ray Data gives it: lists as arrays in an object array."""
    columns = {}
    for name in table[0]:
        column = np.empty(len(table), dtype=object)
        for index, row in enumerate(table):
            value = row[name]
            column[index] = np.array(value) if isinstance(value, list) else value
        columns[name] = column
    return columns


@pytest.fixture
def member(checkpoint: Callable[..., Path]) -> Member:
    return Member(model=checkpoint("llama-gqa"), head="letters")


def score_alone(member: Member, table: list[dict]) -> dict[str, np.ndarray]:
    """The library's scores by question id."""
    questions = [
        Question(id=row["id"], prompt=row["question"], options=tuple(row["options"]), context=row["context"])
        for row in table
    ]
    with Scorer.open([member], MACHINE) as scorer:
        return {row.question.id: row.scores for row in scorer.score(questions)}


def test_a_batch_gets_what_the_library_says(member: Member) -> None:
    table = rows(6)
    expected = score_alone(member, table)
    scorer = StrataBatchScorer([member], MACHINE, overrides=APART)
    found = scorer(batch_of(table))
    assert [*found][:5] == [*table[0]]
    assert found["id"].tolist() == [row["id"] for row in table]
    for index, row in enumerate(table):
        scores = expected[row["id"]]
        assert found["scores"][index] == pytest.approx(scores, abs=1e-6)
        assert found["order"][index].tolist() == np.argsort(-scores, kind="stable").tolist()
        letters = " ".join("ABCDE"[option] for option in np.argsort(-scores, kind="stable")[:3])
        assert found["prediction"][index] == letters
        assert found["probabilities"][index].sum() == pytest.approx(1)


def test_letter_columns_with_absent_options_and_numbers_as_ids(member: Member) -> None:
    batch = {
        "id": np.array([1, 2]),
        "prompt": np.array(["Which?", "What?"], dtype=object),
        "A": np.array(["the moon", "sand"], dtype=object),
        "B": np.array(["a stone", "iron"], dtype=object),
        "C": np.array(["the wind", None], dtype=object),
    }
    found = StrataBatchScorer([member], MACHINE)(batch)
    assert [len(scores) for scores in found["scores"]] == [3, 2]
    assert found["id"].tolist() == [1, 2]


def test_a_row_that_cannot_be_read_is_named(member: Member) -> None:
    scorer = StrataBatchScorer([member], MACHINE)
    bad = batch_of(rows(2)) | {"options": np.array([None, 7], dtype=object)}
    with pytest.raises(InputError, match=r"^batch, row 1: 0 option"):
        scorer(bad)
    with pytest.raises(InputError, match="actors_per_node: 0; expected 1 or more"):
        StrataBatchScorer([member], MACHINE, actors_per_node=0)


def test_actors_of_a_node_share_its_memory(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[MachineSettings] = []
    monkeypatch.setattr(
        ray_data.Scorer, "open", classmethod(lambda cls, members, machine, session: opened.append(machine))
    )
    StrataBatchScorer(
        [member], MachineSettings(devices="cpu", memory_gib=8, host_memory_gib=16), actors_per_node=4
    )
    assert (opened[0].memory_gib, opened[0].host_memory_gib) == (2, 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_dataset_over_two_nodes(member: Member, two_nodes: LocalCluster) -> None:
    pytest.importorskip("pandas", reason="Ray Data needs pandas")
    import ray

    table = rows(12)
    ray.init(address=two_nodes.address, log_to_driver=False)
    try:
        scored = ray.data.from_items(table).map_batches(
            StrataBatchScorer,
            fn_constructor_kwargs={
                "members": [member],
                "machine": MACHINE,
                "overrides": APART,
                "actors_per_node": 2,
            },
            batch_size=4,
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=1,
        )
        found = {row["id"]: row["scores"] for row in scored.take_all()}
    finally:
        ray.shutdown()
    expected = score_alone(member, table)
    assert found.keys() == expected.keys()
    for name, scores in found.items():
        assert scores == pytest.approx(expected[name], abs=1e-6)
