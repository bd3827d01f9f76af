"""What a caller's own code may get wrong: one line each, and nothing is taken for something else in silence.

Independent check: settings of another type once were computed with (a torch dtype meant auto, a text was a
list of options); each is refused by its name here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, Question

FLOAT32 = MachineSettings(devices="cpu", dtype="float32")
FOLDER = Path("somewhere")

pytestmark = pytest.mark.usefixtures("fixed_rates")


@pytest.fixture(scope="module")
def scorer(checkpoint):
    with Scorer.open([Member(model=checkpoint("llama-gqa"), head="letters")], FLOAT32) as opened:
        yield opened


def ask(**changes) -> Question:
    return Question(**({"id": "1", "prompt": "What turns?", "options": ("tide", "bee")} | changes))


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (None, "questions: None; expected a list of Question"),
        ("text", "questions: 'text'; expected a list"),
        ({"id": "1"}, "expected a list"),
        (ask(), "expected a list"),
        ([{"id": "1"}], r"questions\[0\]: .*expected a Question"),
        ([ask(prompt=None)], r"questions\[0\].prompt: None; expected a text"),
        ([ask(), ask(id=2)], r"questions\[1\].id: 2; expected a text"),
        ([ask(context=b"x")], r"questions\[0\].context: b'x'; expected a text"),
        ([ask(options="ab")], r"questions\[0\].options: 'ab'; expected a tuple of texts"),
        ([ask(options=())], r"questions\[0\].options: \(\); expected a tuple of texts, at least one"),
        ([ask(options=("a", None))], r"questions\[0\].options\[1\]: None; expected a text"),
        ([ask(answer=2)], r"questions\[0\].answer: 2; expected None, or an option's index from 0 to 1"),
        ([ask(answer="A")], r"questions\[0\].answer: 'A'"),
        ([ask(answer=True)], r"questions\[0\].answer: True"),
        ([ask(), ask()], "id '1' comes twice"),
    ],
)
def test_questions(scorer, questions, message):
    with pytest.raises(InputError, match=message):
        scorer.score(questions)


def test_questions_may_come_one_by_one(scorer):
    expected = scorer.score([ask(), ask(id="2", options=["tide", "hill"])])
    found = scorer.score(each for each in [ask(), ask(id="2", options=["tide", "hill"])])
    assert [row.scores.tolist() for row in found] == [row.scores.tolist() for row in expected]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (None, r"pairs: None; expected a list of \(prefix, continuation\)"),
        ("ab", "pairs: 'ab'; expected a list"),
        ([("a", "b"), ("c",)], r"pair 1: \('c',\); expected \(prefix, continuation\)"),
        ([None], "pair 0: None; expected"),
        ([("a", 5)], "pair 0: 5; expected a text"),
    ],
)
def test_pairs_of_texts(scorer, pairs, message):
    with pytest.raises(InputError, match=message):
        scorer.log_likelihoods(pairs)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (5, "pairs: 5; expected a list"),
        ([([1], [2**40])], "pair 0: token id 1099511627776; expected none below 0 or above 2147483647"),
        ([([1], [2**70])], "pair 0: .*expected a list of token ids"),
        ([([-1], [1])], "pair 0: token id -1"),
        ([([1.5], [1])], r"pair 0: \[1.5\]; expected a list of token ids, whole numbers"),
        ([([True], [1])], r"pair 0: \[True\]; expected a list of token ids"),
        ([(["a"], [1])], r"pair 0: \['a'\]; expected a list of token ids"),
        ([([1], None)], "pair 0: None; expected a list of token ids"),
        ([([1], [])], "pair 0: the continuation becomes no token"),
    ],
)
def test_pairs_of_token_ids(scorer, pairs, message):
    with pytest.raises(InputError, match=message):
        scorer.plan_continuations(pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "folder"}, "Member.model: input should be an instance of Path, found 'folder'"),
        ({"adapter": "folder"}, "Member.adapter: "),
        ({"max_tokens": "5"}, "Member.max_tokens: input should be a valid integer, found '5'"),
        ({"layers": "half"}, "Member.layers: input should be a valid number"),
        ({"label": 5}, "Member.label: input should be a valid string"),
        ({"chat": "yes"}, "Member.chat: input should be a valid boolean"),
        ({"shots": (ask(),)}, "Member.shots: question '1' has no answer"),
        ({"shots": ask()}, "Member.shots: "),
    ],
)
def test_members(settings, message):
    with pytest.raises(InputError, match=message):
        Scorer.open([Member(**({"model": FOLDER} | settings))], FLOAT32)


@pytest.mark.parametrize("members", [Member(model=FOLDER), [FOLDER], "folder", [None]])
def test_what_is_no_list_of_members(members):
    with pytest.raises(InputError, match="members: "):
        Scorer.open(members, FLOAT32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": torch.float32}, "MachineSettings.dtype: input should be 'auto', 'float32'.*torch.float32"),
        ({"dtype": None}, "MachineSettings.dtype: "),
        ({"devices": ["cpu"]}, "MachineSettings.devices: input should be a valid string"),
        ({"memory_gib": "5"}, "MachineSettings.memory_gib: input should be a valid number"),
        ({"verify": "no"}, "MachineSettings.verify: input should be a valid boolean"),
        ({"cache_dir": "folder"}, "MachineSettings.cache_dir: "),
    ],
)
def test_machine(settings, message):
    with pytest.raises(InputError, match=message):
        Scorer.open([Member(model=FOLDER)], MachineSettings(**settings))


def test_a_context_that_no_question_has():
    member = Member(model=FOLDER, context="wiki")
    question = Question(id="7", prompt="p", options=("a", "b"), contexts=(("web", "text"),))
    with pytest.raises(InputError, match=r"Member.context: question '7' has no context 'wiki'; .*none, web"):
        member.read([question])
    (found,) = Member(model=FOLDER, context="web").read([question])
    assert found.context == "text"
    (without,) = Member(model=FOLDER, context="none").read([question])
    assert without.context == ""
