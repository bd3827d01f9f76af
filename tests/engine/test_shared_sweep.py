"""Members of one base with prompts, heads and adapters of their own share a sweep.

Checked against each of them scored alone, and against the bytes that one read of the base takes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from strata.engine.deadline import Deadline
from strata.engine.ensembles.named_scores import scores_of_member
from strata.engine.jobs.job import Session
from strata.engine.jobs.shared_sweep import SharedSweepJob
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.questions.question_file import read_questions
from strata.engine.scorer import Scorer
from strata.engine.types import RunWarnings

pytestmark = pytest.mark.usefixtures("fixed_rates")

FLOAT32 = MachineSettings(devices="cpu", dtype="float32")


@pytest.fixture
def asked(questions):
    read = read_questions(questions, warnings=RunWarnings())
    return [replace(question, contexts=(("wiki", f"Of {question.prompt} it is said:"),)) for question in read]


def train_by_chance(model, folder, seed):
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model)
    trained = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, weight in trained.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    trained.save_pretrained(folder)
    return folder


@pytest.fixture
def members(checkpoint, tmp_path):
    model = checkpoint("llama-gqa")
    adapters = [train_by_chance(model, tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    return [
        Member(model=model, head="letters", debias="rotate", label="letters"),
        Member(model=model, head="loglik", label="loglik", context="none"),
        Member(model=model, adapter=adapters[0], head="yes-no", label="first", context="wiki"),
        Member(model=model, adapter=adapters[1], head="yes-no", label="second", context="wiki"),
        Member(model=model, adapter=adapters[0], head="letters", label="third"),
    ]


def score_alone(member, asked, machine=FLOAT32):
    with Scorer.open([member], machine) as scorer:
        return scorer.score(asked)


@pytest.mark.parametrize(
    ("devices", "overrides"),
    [
        ("cpu", {}),
        ("cpu", {"num_groups": 3, "resident_layers": 0, "micro_batch_tokens": 16}),
        ("cpu,cpu", {"num_groups": 2, "hidden_store": "disk"}),
    ],
)
def test_each_member_says_what_it_says_alone(members, asked, tmp_path, devices, overrides):
    session = Session(folder=tmp_path, overrides=PlanOverrides(**overrides))
    machine = replace(FLOAT32, devices=devices)
    with Scorer.open(members, machine, session=session) as scorer:
        rows = scorer.score(asked)
    for member in members:
        for row, alone in zip(rows, score_alone(member, asked), strict=True):
            said = scores_of_member(row, member.name)
            np.testing.assert_allclose(said.scores, alone.scores, atol=2e-5)
    alone = [score_alone(member, asked)[0].probabilities for member in members]
    np.testing.assert_allclose(rows[0].probabilities, np.mean(alone, axis=0), atol=1e-5)


def test_the_base_is_read_once_for_all(members, asked, tmp_path):
    def plan(some):
        session = Session(folder=tmp_path, overrides=PlanOverrides(num_groups=2, resident_layers=0))
        with Scorer.open(some, FLOAT32, session=session) as scorer:
            job = scorer.plan(asked)
            list(job.groups(Deadline()))
            first = job.jobs[0] if isinstance(job, SharedSweepJob) else job
            measured, model = job.measure(), first.opened.model
            assert (measured.bytes_read, measured.tokens_computed) == (
                first.sweep.plan.bytes_read,
                first.sweep.plan.tokens,
            )
        base = sum(model.loader.stored_bytes(layer) for layer in range(model.loader.num_layers))
        return measured, 2 * base + model.checkpoint.require("norm.weight").num_bytes

    groups = [members[:1], members[1:2], members[2:4], members[4:]]
    (shared, base), alone = plan(members), [plan(group)[0] for group in groups]
    assert shared.tokens_computed == sum(one.tokens_computed for one in alone)
    assert shared.bytes_read == sum(one.bytes_read for one in alone) - 3 * base


def test_a_lone_adapter_is_merged_for_all_its_prompts(members, asked):
    pair = [members[2], members[4]]
    with Scorer.open(pair, FLOAT32) as scorer:
        job = scorer.plan(asked)
        assert isinstance(job, SharedSweepJob)
        assert all(side.layers is None for part in job.jobs for side in part.opened.model.members)
        rows = {row.question.id: row for found in job.groups(Deadline()) for row in found}
    for member in pair:
        for alone in score_alone(member, asked):
            said = scores_of_member(rows[alone.question.id], member.name)
            np.testing.assert_allclose(said.scores, alone.scores, atol=2e-5)


def test_what_a_deadline_cuts_off_does_not_count(members, asked, tmp_path):
    session = Session(folder=tmp_path, overrides=PlanOverrides(num_groups=4))
    with Scorer.open(members[:2], FLOAT32, session=session) as scorer:
        job = scorer.plan(asked)
        rows = [row for found in job.groups(Deadline(at_s=0.0)) for row in found]
    assert 0 < len(rows) < len(asked)
    alone = {member.name: score_alone(member, asked) for member in members[:2]}
    for row in rows:
        said = [
            scored.probabilities
            for scores in alone.values()
            for scored in scores
            if scored.question.id == row.question.id
        ]
        assert any(np.allclose(row.probabilities, one, atol=1e-5) for one in (np.mean(said, axis=0), *said))
        heard = [name for name in alone if name in row.member_scores]
        assert heard, "every row tells which members it is of"
        expected = np.mean([scores_of_member(row, name).probabilities for name in heard], axis=0)
        np.testing.assert_allclose(row.probabilities, expected, atol=1e-9)


def test_a_second_job_keeps_the_layers_of_the_first(members, asked, tmp_path):
    with Scorer.open(members, FLOAT32, session=Session(folder=tmp_path)) as scorer:
        first = scorer.plan(asked)
        list(first.groups(Deadline()))
        second = scorer.plan(asked)
        list(second.groups(Deadline()))
        base = first.jobs[0].opened.model.loader
        layers = sum(base.stored_bytes(layer) for layer in range(base.num_layers))
    assert second.measure().bytes_read == first.measure().bytes_read - layers
