"""Several orders through the real sweep: no order of the options changes the scores; pride, resumed."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest

from strata.engine.config import ScoreConfig
from strata.engine.heads.debias import BY_PLACE, STATED_ORDER, rotations
from strata.engine.heads.debiasing.pride import LEAST_SAMPLE
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.results.partial_scores import FILE_NAME
from strata.engine.run import score as run_module
from strata.engine.scorer import Scorer
from strata.engine.types import Question

from ...reference import count_trie_nodes, read_prompts
from ...sample_questions import QUESTIONS, write_jsonl

FLOAT32 = MachineSettings(devices="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("debias", "shown"),
    [("rotate", rotations(4)), ("permute", tuple(permutations(range(4))))],
    ids=["rotate", "permute"],
)
def test_scores_are_the_same_in_every_order_that_is_averaged_over(debias, shown, checkpoint, score, tmp_path):
    row = QUESTIONS[0]
    rows = [
        row | {"id": str(order), "options": [row["options"][index] for index in order], "answer": 0}
        for order in shown
    ]
    path = write_jsonl(tmp_path / "orders.jsonl", rows)
    run = score(model=checkpoint("llama-gqa"), questions=path, head="letters", debias=debias)
    found = {name.question.id: name for name in run.scores}
    stated = found[str((0, 1, 2, 3))]
    for order in shown:
        np.testing.assert_allclose(found[str(order)].scores, stated.scores[list(order)], rtol=0, atol=1e-5)
    before = found[str(shown[1])].member_scores[STATED_ORDER]
    assert np.abs(before - stated.member_scores[STATED_ORDER][list(shown[1])]).max() > 1e-3


def test_the_orders_of_a_question_share_its_prefix(checkpoint, score):
    settings = {"model": checkpoint("llama-gqa"), "head": "letters"}
    one, all_orders = score(**settings), score(debias="permute", debias_orders=6, **settings)
    lines = read_prompts(all_orders.out)
    assert {line["id"]: len({tuple(b["order"]) for b in line["branches"]}) for line in lines} == {
        "tide": 6,
        "07": 2,
        "\u00e9t\u00e9": 6,
        "bee": 6,
    }
    computed = all_orders.record["measured"]["tokens_computed"]
    assert computed == count_trie_nodes(lines)
    assert computed < 2.5 * one.record["measured"]["tokens_computed"]


def many_rows(num: int) -> list[dict]:
    """Questions of three and of four options."""
    rows = []
    for index in range(num):
        row = QUESTIONS[0] if index % 2 else QUESTIONS[2]
        rows.append(row | {"id": f"q{index}", "question": f"{row['question']} {index}"})
    return rows


@pytest.fixture
def many(tmp_path):
    return write_jsonl(tmp_path / "many.jsonl", many_rows(2 * LEAST_SAMPLE + 10))


def by_id(run) -> dict[str, np.ndarray]:
    return {row.question.id: row.scores for row in run.scores}


def test_pride_is_cheap_and_its_parts_are_rotated_or_one_order_less_the_prior(checkpoint, score, many):
    """Independent check: runs of the other ways, and the prior by hand."""
    settings = {"model": checkpoint("llama-gqa"), "questions": many, "head": "letters"}
    run, turned, plain = (score(debias=way, **settings) for way in ("pride", "rotate", "none"))
    rotated, stated = by_id(turned), by_id(plain)
    places = {row.question.id: row.member_scores[BY_PLACE] for row in turned.scores}
    sampled = [row for row in run.scores if BY_PLACE in row.member_scores]
    assert len(sampled) == 2 * LEAST_SAMPLE
    for row in sampled:
        np.testing.assert_allclose(row.scores, rotated[row.question.id], rtol=0, atol=1e-5)
    for row in run.scores:
        if BY_PLACE in row.member_scores:
            continue
        alike = [one.question.id for one in sampled if len(one.scores) == len(row.scores)]
        prior = np.mean([np.exp(places[name]) / np.exp(places[name]).sum() for name in alike], axis=0)
        weighed = np.exp(stated[row.question.id]) / prior
        np.testing.assert_allclose(row.probabilities, weighed / weighed.sum(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(row.member_scores[STATED_ORDER], stated[row.question.id], atol=1e-5)


def test_pride_is_resumed_after_any_of_its_groups(checkpoint, score, many, monkeypatch):
    """The rows that were kept are as observed, so that they are finished with those that follow."""
    settings = {"model": checkpoint("llama-gqa"), "questions": many, "head": "letters", "debias": "pride"}
    expected = score(**settings)

    class KilledError(Exception):
        pass

    real = run_module.PartialScores.add
    kept = []

    def add(self, scores):
        if len(kept) == 2:
            raise KilledError
        kept.append(len(scores))
        real(self, scores)

    monkeypatch.setattr(run_module.PartialScores, "add", add)
    out = expected.out.parent / "killed"
    with pytest.raises(KilledError):
        score(out=out, num_groups=4, **settings)
    lines = (out / FILE_NAME).read_text().splitlines()
    assert len(lines) == 1 + sum(kept)
    assert any(BY_PLACE in json.loads(line)["members"] for line in lines[1:])
    monkeypatch.undo()
    resumed = score(out=out, resume=True, num_groups=4, **settings)
    assert resumed.record["measured"]["resumed_questions"] == sum(kept)
    for name, scores in by_id(expected).items():
        np.testing.assert_allclose(by_id(resumed)[name], scores, rtol=0, atol=1e-5)


def test_pride_of_another_seed_is_another_job(checkpoint):
    questions = [Question(id=str(index), prompt=f"{index}?", options=("a", "b")) for index in range(40)]
    digests = set()
    for seed in (0, 0, 1):
        config = ScoreConfig.from_flags(
            model=checkpoint("llama-gqa"),
            questions="q",
            out="o",
            head="letters",
            debias="pride",
            debias_seed=seed,
        )
        with Scorer.open(config.members(), FLOAT32) as scorer:
            digests.add(scorer.fingerprint(scorer.render(questions)))
    assert len(digests) == 2


def test_the_library_hands_pride_over_at_the_end_and_members_are_finished_apart(checkpoint, fixed_rates):
    questions = [
        Question(id=str(index), prompt=f"Is it {index}?", options=("sand", "a stone", "the sea"))
        for index in range(LEAST_SAMPLE + 6)
    ]
    members = [
        Member(model=checkpoint("llama-gqa"), head="letters", debias="pride", label="first"),
        Member(model=checkpoint("qwen2"), head="letters", debias="pride", label="second"),
    ]
    alone = []
    for member in members:
        with Scorer.open([member], FLOAT32) as scorer:
            (rows,) = scorer.groups(questions)
            alone.append({row.question.id: row for row in rows})
    with Scorer.open(members, FLOAT32) as scorer:
        together = scorer.score(questions)
    for row in together:
        first, second = (rows[row.question.id] for rows in alone)
        expected = (first.probabilities + second.probabilities) / 2
        np.testing.assert_allclose(row.probabilities, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(row.member_scores["second"], second.scores, rtol=0, atol=1e-5)
        assert f"first_{STATED_ORDER}" in row.member_scores


def test_ways_without_effect_are_told(checkpoint, score):
    run = score(model=checkpoint("llama-gqa"), head="loglik", debias="pride")
    assert any("--debias pride has no effect on head loglik" in m for m in run.record["warnings"]["messages"])
