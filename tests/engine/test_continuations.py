"""Continuations given as token ids: their log-likelihoods, what of them is computed, what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.scorer import Scorer
from strata.engine.types import InputError

FLOAT32 = MachineSettings(devices="cpu", dtype="float32")
PREFIX = [1, 40, 41, 42, 43, 44, 45, 46]
PAIRS = [
    (PREFIX, [50, 51]),
    (PREFIX, [50, 52]),
    (PREFIX, [60]),
    ([*PREFIX, 50], [51]),
    ([7], [8, 9, 10]),
]

pytestmark = pytest.mark.usefixtures("fixed_rates")


@pytest.fixture
def scorer(checkpoint, tmp_path):
    session = Session(folder=tmp_path, overrides=PlanOverrides(num_groups=2))
    with Scorer.open([Member(model=checkpoint("llama-gqa"))], FLOAT32, session=session) as opened:
        yield opened


def dense_log_probabilities(folder, ids):
    """[L, V] of transformers' own model on one sequence."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)


def test_sums_and_greediness_are_those_of_transformers(scorer, checkpoint):
    folder = checkpoint("llama-gqa")
    greedy = int(dense_log_probabilities(folder, PREFIX)[-1].argmax())
    pairs = [*PAIRS, (PREFIX, [greedy])]
    found = scorer.plan_continuations(pairs).in_order()
    for (prefix, continuation), (total, is_greedy) in zip(pairs, found, strict=True):
        rows = dense_log_probabilities(folder, [*prefix, *continuation])[len(prefix) - 1 : -1]
        expected = sum(float(row[token]) for row, token in zip(rows, continuation, strict=True))
        assert total == pytest.approx(expected, abs=1e-4)
        assert is_greedy == (rows.argmax(-1).tolist() == continuation)
    assert found[-1][1]


def test_each_token_of_a_shared_prefix_is_computed_once(scorer):
    job = scorer.plan_continuations(PAIRS)
    # The last token of a pair is predicted, not computed: prefix, 50 of three pairs, and 7, 8, 9.
    assert job.num_tree_tokens == len(PREFIX) + 1 + 3
    groups = list(job.groups())
    assert job.job.measure().tokens_computed == job.num_tree_tokens
    assert sorted(number for group in groups for number in group) == list(range(len(PAIRS)))
    assert len([group for group in groups if group]) > 1


def test_no_pair(scorer):
    job = scorer.plan_continuations([])
    assert (job.num_tree_tokens, job.in_order()) == (0, [])


def test_a_pair_may_fill_the_window_and_predict_one_token_more(scorer):
    window = scorer.decoder.prompting.window
    filling = ([5] * window, [6])
    assert len(scorer.plan_continuations([filling]).in_order()) == 1
    with pytest.raises(InputError, match=f"pair 0: {window + 2} tokens; the model's window is {window}"):
        scorer.plan_continuations([([5] * window, [6, 7])])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], [5]), "pair 0: the prefix has no token"),
        (([5], []), "pair 0: the continuation becomes no token"),
        (([5, -1], [5]), "pair 0: token id -1; expected none below 0"),
        (([5], [10**6]), "token id 1000000; expected ids below 384"),
        (([10**6], [5]), "token id 1000000; expected ids below 384"),
    ],
)
def test_ids_that_mean_nothing_are_refused(scorer, pair, message):
    with pytest.raises(InputError, match=message):
        scorer.plan_continuations([pair])


def test_several_members_are_refused(checkpoint):
    model = checkpoint("llama-gqa")
    members = [Member(model=model), Member(model=model, head="letters", label="second")]
    with (
        Scorer.open(members, FLOAT32) as scorer,
        pytest.raises(InputError, match="expected one decoder member"),
    ):
        scorer.plan_continuations(PAIRS)
