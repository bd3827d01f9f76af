"""The registry: which head a job takes, and that a head from elsewhere is a head like any other."""

import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from strata.engine.heads.head import Draft
from strata.engine.heads.probabilities import option_probabilities
from strata.engine.heads.registry import HEADS, choose_head
from strata.engine.types import InputError, QuestionScores

from ...reference import read_prompts

WIDTH = 32
CHOICES = [
    (None, "yes-no"),
    ((1, 32), "binary"),
    ((2, 32), "binary"),
    ((1, 64), "contrast"),
]


def choose(setting, shape):
    return choose_head(setting, shape, WIDTH, where="here and there")


def test_heads_stand_under_their_names():
    assert {name: head.name for name, head in HEADS.items()} == {name: name for name in HEADS}


@pytest.mark.parametrize(("shape", "expected"), CHOICES, ids=str)
def test_auto_head(shape, expected):
    assert choose("auto", shape) is HEADS[expected]
    for head in ("yes-no", "letters", "loglik"):
        assert choose(head, shape) is HEADS[head]


REFUSALS = [
    ("binary", None, "here and there hold no score.weight"),
    ("contrast", None, "here and there hold no score.weight"),
    ("binary", (1, 64), "score.weight has shape [1, 64]; expected [1, 32] or [2, 32]"),
    ("binary", (3, 32), "score.weight has shape [3, 32]; expected [1, 32] or [2, 32]"),
    ("contrast", (1, 32), "score.weight has shape [1, 32]; expected [1, 64]"),
    ("contrast", (2, 64), "score.weight has shape [2, 64]; expected [1, 64]"),
    ("classify", None, "here and there hold no score.weight"),
    ("classify", (1, 32), "score.weight has shape [1, 32]; expected [2 or more, 32]"),
    ("classify", (3, 64), "score.weight has shape [3, 64]; expected [2 or more, 32]"),
]
AUTO_REFUSALS = [
    (
        "binary",
        (3, 32),
        "score.weight has shape [3, 32]; expected [1, 32] or [2, 32], or --task classify, which scores every "
        "label",
    ),
    ("contrast", (2, 64), "score.weight has shape [2, 64]; expected [1, 64]"),
    ("binary", (1, 48), "score.weight has shape [1, 48]; expected [1, 32] or [2, 32]"),
    ("binary", (32,), "score.weight has shape [32]; expected [1, 32] or [2, 32]"),
]


@pytest.mark.parametrize(("head", "shape", "message"), REFUSALS, ids=str)
def test_heads_that_do_not_fit_the_score_are_refused(head, shape, message):
    with pytest.raises(InputError, match=f"^{re.escape(f'--head {head}: {message}')}$"):
        choose(head, shape)


@pytest.mark.parametrize(("head", "shape", "message"), AUTO_REFUSALS, ids=str)
def test_auto_refuses_a_score_that_fits_no_head(head, shape, message):
    with pytest.raises(InputError, match=f"^{re.escape(f'--head {head}: {message}')}$"):
        choose("auto", shape)


def test_an_unknown_head_is_refused():
    with pytest.raises(InputError, match=r"--head 'pride': expected auto, binary, .*, loglik, classify$"):
        choose("pride", None)


def test_the_registry_loads_no_torch():
    code = "import sys, strata.engine.heads.registry; assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TokenMean:
    """A head of this module: the mean log-probability of an option's tokens."""

    name, template, needs, forbids = "mine", "statement", "option", None
    numbers_options = False
    asked: ClassVar[list[str]] = []

    def weight_shapes(self, hidden_size):
        return ()

    def normalizes(self, targets):
        return True

    def write_drafts(self, pen, question, context, *, orders):
        drafts = []
        for option in range(len(question.options)):
            text = pen.render(question, context, option=option)
            span = pen.find_option(question, context, option=option, text=text)
            drafts.append(Draft(option=option, order=(), label=None, text=text, scored=span))
        return drafts

    def bytes_read(self, targets, costs, *, normalized):
        return costs.vocabulary_bytes(targets.token_ids, normalized=normalized)

    def score(self, prompts, targets, readings):
        return rank(prompts, mean_by_branch(targets, readings.log_probabilities()))


class LogitMean(TokenMean):
    """The same of logits, which reads no more of the vocabulary than the options' tokens."""

    def normalizes(self, targets):
        return False


class LargestState(TokenMean):
    """The largest number in the hidden state of an option's last token: needs no stored weight."""

    def write_drafts(self, pen, question, context, *, orders):
        texts = [pen.render(question, context, option=option) for option in range(len(question.options))]
        return [
            Draft(option=option, order=(), label=None, text=text, scored=None)
            for option, text in enumerate(texts)
        ]

    def bytes_read(self, targets, costs, *, normalized):
        return 0

    def score(self, prompts, targets, readings):
        return rank(prompts, readings.hidden_states().amax(dim=1).double().numpy())


def mean_by_branch(targets, values):
    return np.array([values[targets.branches == branch].mean() for branch in range(targets.num_branches)])


def rank(prompts, branch_scores):
    ends = np.cumsum([len(prompt.branches) for prompt in prompts])
    return [
        QuestionScores(question=prompt.question, scores=scores, probabilities=option_probabilities(scores))
        for prompt, scores in zip(prompts, np.split(branch_scores, ends[:-1]), strict=True)
    ]


def expected_token_mean(branch, reference):
    rows = reference.log_probabilities(branch["ids"])
    return np.mean([rows[position - 1, token].item() for position, token in branch["targets"]])


def expected_logit_mean(branch, reference):
    # The readout, times the row of the output embedding that each token has.
    projection = reference.causal_lm.get_output_embeddings().weight.detach()
    readouts = [reference.readout(branch["ids"][:position]) for position, _ in branch["targets"]]
    tokens = [token for _, token in branch["targets"]]
    return np.mean([(row @ projection[token]).item() for row, token in zip(readouts, tokens, strict=True)])


def expected_largest_state(branch, reference):
    return reference.readout(branch["ids"]).max().item()


HEADS_OF_MINE = {
    "token mean": (TokenMean(), expected_token_mean),
    "logit mean": (LogitMean(), expected_logit_mean),
    "largest state": (LargestState(), expected_largest_state),
}


@pytest.mark.parametrize("case", HEADS_OF_MINE)
def test_a_new_head_is_an_object_and_a_line(case, checkpoint, reference, score, monkeypatch):
    head, expected_score = HEADS_OF_MINE[case]
    monkeypatch.setitem(HEADS, "mine", head)
    model = checkpoint("llama-gqa")
    oracle = reference(model)
    oracle.log_probabilities([1])  # loads the language model
    run = score(model=model, head="mine", num_groups=2)
    expected = {
        line["id"]: [expected_score(branch, oracle) for branch in line["branches"]]
        for line in read_prompts(run.out)
    }
    assert [row.question.id for row in run.scores] == list(expected)
    for row in run.scores:
        assert np.ptp(row.scores) > 1e-2, "the options' scores hardly differ: the comparison says nothing"
        np.testing.assert_allclose(row.scores, expected[row.question.id], rtol=0, atol=1e-4)
    assert run.record["plan"]["head"] == "mine"
    assert run.record["plan"]["bytes_read"] == run.record["measured"]["bytes_read"]
    assert Path(run.out / "submission.csv").is_file()
