"""The library: scores without files, twice on the same weights, in groups, of several models, of pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from strata.engine.deadline import Deadline
from strata.engine.jobs.decoder_job import DecoderJob
from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.questions.question_file import read_questions
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, RunWarnings

from .encoders.tiny_encoder import build_encoder

NO_DEADLINE = Deadline()
FLOAT32 = MachineSettings(devices="cpu", dtype="float32")

pytestmark = pytest.mark.usefixtures("fixed_rates")


@pytest.fixture
def asked(questions):
    return read_questions(questions, warnings=RunWarnings())


def session_of(folder: Path, **overrides) -> Session:
    return Session(folder=folder, overrides=PlanOverrides(**overrides))


def test_scores_are_those_of_a_run(checkpoint, asked, questions, score):
    model = checkpoint("llama-gqa")
    run = score(model=model, head="letters", debias="rotate")
    with Scorer.open([Member(model=model, head="letters", debias="rotate")], FLOAT32) as scorer:
        rows = scorer.score(asked)
    for row, expected in zip(rows, run.scores, strict=True):
        assert row.question.id == expected.question.id
        np.testing.assert_array_equal(row.scores, expected.scores)


def test_nothing_is_left_or_printed(checkpoint, asked, tmp_path, monkeypatch, capfd):
    model = checkpoint("llama-gqa")
    monkeypatch.chdir(tmp_path)
    with Scorer.open([Member(model=model)], FLOAT32) as scorer:
        scorer.score(asked)
        list(scorer.groups(asked))
        scorer.plan(asked).describe()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_progress_is_told_on_stderr_where_it_is_asked_for(checkpoint, asked, monkeypatch, capsys):
    monkeypatch.setattr("strata.engine.progress.LINE_EVERY_S", 0.0)
    with Scorer.open([Member(model=checkpoint("llama-gqa"))], FLOAT32, progress=True) as scorer:
        rows = scorer.score(asked)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("sweep: 100%")
    assert rows._repr_html_().count("<tr>") == 1 + len(asked)


@pytest.mark.parametrize("resident", [None, 1])
def test_a_second_call_reads_no_resident_layer_again(checkpoint, asked, tmp_path, resident):
    session = session_of(tmp_path, resident_layers=resident)
    with Scorer.open([Member(model=checkpoint("llama-gqa"))], FLOAT32, session=session) as scorer:
        first, second = scorer.plan(asked), None
        assert isinstance(first, DecoderJob)
        before = [row for rows in first.groups(NO_DEADLINE) for row in rows]
        second = scorer.plan(asked)
        assert isinstance(second, DecoderJob)
        after = [row for rows in second.groups(NO_DEADLINE) for row in rows]
        costs = first.opened.model.loader
        held = sum(costs.stored_bytes(layer) for layer in first.sweep.plan.resident_layers)
        assert held > 0
        assert second.measure().bytes_read == first.measure().bytes_read - held
        for job in (first, second):
            assert job.measure().bytes_read == job.sweep.plan.bytes_read
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


def test_groups_are_yielded_as_they_end(checkpoint, asked, tmp_path):
    member = Member(model=checkpoint("llama-gqa"))
    with Scorer.open([member], FLOAT32, session=session_of(tmp_path, num_groups=3)) as scorer:
        groups = [[row.question.id for row in rows] for rows in scorer.groups(asked)]
        left = scorer.groups(asked)
        next(left)
        left.close()
        rows = scorer.score(asked)
    assert len([ids for ids in groups if ids]) > 1
    assert sorted(id for ids in groups for id in ids) == sorted(question.id for question in asked)
    assert [row.question.id for row in rows] == [question.id for question in asked]


def test_members_of_two_models_are_averaged(checkpoint, asked, tmp_path):
    decoder = Member(model=checkpoint("llama-gqa"), label="decoder")
    encoder = Member(model=build_encoder("bert", tmp_path / "bert"), label="encoder")
    alone = []
    for member in (decoder, encoder):
        with Scorer.open([member], FLOAT32) as scorer:
            alone.append(scorer.score(asked))
    with Scorer.open([decoder, encoder], FLOAT32) as scorer:
        assert scorer.members == ("decoder", "encoder")
        both = scorer.score(asked)
    for row, *apart in zip(both, *alone, strict=True):
        np.testing.assert_allclose(row.probabilities, np.mean([one.probabilities for one in apart], axis=0))
        for name, one in zip(scorer.members, apart, strict=True):
            np.testing.assert_array_equal(row.member_scores[name], one.scores)


def test_a_member_without_contexts(checkpoint, asked):
    model = checkpoint("llama-gqa")
    bare = [replace(question, context="") for question in asked]
    with Scorer.open([Member(model=model)], FLOAT32) as scorer:
        expected = scorer.score(bare)
    with Scorer.open([Member(model=model, context="none")], FLOAT32) as scorer:
        found = scorer.score(asked)
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row.scores, other.scores)


def test_members_of_one_name_are_refused(checkpoint):
    member = Member(model=checkpoint("llama-gqa"))
    with pytest.raises(InputError, match="two members are called 'base'"):
        Scorer.open([member, replace(member, head="letters")], FLOAT32)
    with pytest.raises(InputError, match="expected at least one"):
        Scorer.open([], FLOAT32)


def test_an_id_that_comes_twice_is_refused(checkpoint, asked):
    with (
        Scorer.open([Member(model=checkpoint("llama-gqa"))], FLOAT32) as scorer,
        pytest.raises(InputError, match="comes twice"),
    ):
        scorer.score([asked[0], asked[0]])


PAIRS = [
    ("The capital of France", " is Paris"),
    ("The capital of France ", "is Paris"),
    ("The capital of France", " is Rome"),
    ("Water boils at", " a hundred degrees"),
    ("", "Water"),
]


def naive_log_likelihood(model, tokenizer, prefix: str, continuation: str) -> tuple[float, bool]:
    """A pair on its own through transformers, cut as lm-evaluation-harness cuts it."""
    spaces = len(prefix) - len(prefix.rstrip())
    if spaces:
        prefix, continuation = prefix[:-spaces], prefix[-spaces:] + continuation
    if prefix:
        whole = tokenizer(prefix + continuation).input_ids
        start = len(tokenizer(prefix).input_ids)
    else:
        whole = [tokenizer.bos_token_id, *tokenizer(continuation, add_special_tokens=False).input_ids]
        start = 1
    with torch.no_grad():
        log_probabilities = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    found = [log_probabilities[place - 1] for place in range(start, len(whole))]
    tokens = whole[start:]
    total = sum(float(row[token]) for row, token in zip(found, tokens, strict=True))
    return total, all(int(row.argmax()) == token for row, token in zip(found, tokens, strict=True))


def test_log_likelihoods_are_those_of_transformers(checkpoint, tmp_path):
    path = checkpoint("llama-gqa")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    prefix = "The capital of France"
    with torch.no_grad():
        ids = tokenizer(prefix, return_tensors="pt").input_ids
        greedy = tokenizer.decode(model(ids).logits[0, -1].argmax())
    pairs = [*PAIRS, (prefix, greedy)]
    with Scorer.open([Member(model=path)], FLOAT32, session=session_of(tmp_path, num_groups=2)) as scorer:
        found = scorer.log_likelihoods(pairs)
        assert scorer.log_likelihoods([]) == []
    for (total, is_greedy), pair in zip(found, pairs, strict=True):
        expected, greedily = naive_log_likelihood(model, tokenizer, *pair)
        assert total == pytest.approx(expected, abs=1e-4)
        assert is_greedy == greedily


def test_pairs_that_mean_nothing_are_refused(checkpoint):
    with Scorer.open([Member(model=checkpoint("llama-gqa"))], FLOAT32) as scorer:
        with pytest.raises(InputError, match=r"pair 1: the continuation becomes no token"):
            scorer.log_likelihoods([("a", " b"), ("a", "")])
        with pytest.raises(InputError, match=r"pair 0: \d+ tokens; the model's window is \d+"):
            scorer.log_likelihoods([("word " * 5000, " b")])
