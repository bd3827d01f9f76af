"""The file of `strata run`: what its keys become, and that what does not fit together is told by place."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.engine.adapters.trained_settings import TrainedSettings, write_trained_settings
from strata.engine.pipeline.config import Pipeline, read_pipeline
from strata.engine.types import InputError

WHOLE = """\
retrieval:
  wiki: {index: somewhere}
members:
  small: {model: a, head: letters, debias: rotate, context: wiki, machine: {dtype: bfloat16}}
  big: {model: b, adapter: c, weight: 2.0, context: none, max_tokens: 900}
stages:
  - members: [small]
  - {name: hard, members: [big], questions: {least_sure: 0.4, by: entropy}, combine: replace}
machine: {memory_gib: 2, dtype: float32}
deadline: 90m
"""


def read(tmp_path: Path, text: str, *settings: str) -> Pipeline:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_pipeline(path, settings)


def test_members_and_stages(tmp_path):
    pipeline = read(tmp_path, WHOLE)
    small, big = pipeline.members.values()
    assert (small.member.name, small.member.head, small.member.debias) == ("small", "letters", "rotate")
    assert (small.machine.dtype, small.machine.memory_gib) == ("bfloat16", 2)
    assert (big.machine.dtype, big.member.adapter, big.member.max_tokens) == ("float32", Path("c"), 900)
    assert (big.weight, small.weight) == (2.0, 1.0)
    first, second = pipeline.stages
    assert (first.name, first.rule, first.replaces) == ("1 small", None, False)
    assert (second.name, second.rule.least_sure, second.rule.by) == ("hard", 0.4, "entropy")
    assert second.replaces
    assert pipeline.sources == ["wiki"]
    assert not pipeline.fits


def test_without_stages_all_members_are_one(tmp_path):
    pipeline = read(tmp_path, "members: {a: {model: x}, b: {model: y}}\n")
    assert [stage.members for stage in pipeline.stages] == [("a", "b")]


def test_settings_change_it(tmp_path):
    pipeline = read(
        tmp_path, WHOLE, "members.big.machine.dtype=int8", "stages.1.questions={margin_below: 0.1}"
    )
    assert pipeline.members["big"].machine.dtype == "int8"
    assert pipeline.stages[1].rule.margin_below == 0.1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("members.big.head=bynary", "run.yaml:5:8: members.big.head: expected one of auto, "),
        ("members.big.head=classify", "members.big.head: expected one of auto, "),
        ("members.big.context=wicki", "members.big.context: expected one of question, none, wiki"),
        ("members.big.weight=-1", "members.big.weight: input should be greater than or equal to 0"),
        ("members.big.debias=turn", "members.big.debias: "),
        ("members.big.haed=x", "run.yaml:5:8: members.big.haed: expected head, found 'haed'"),
        ("members.big.machine.colour=x", "members.big.machine.colour: expected one of devices, dtype, "),
        ("stages.1.questions={leest_sure: 0.1}", "stages.1.questions.leest_sure: expected least_sure, found"),
        ("ensmeble={over: ranks}", "ensmeble: expected ensemble, found 'ensmeble'"),
        ("stages.1.members=[bigg]", "stages.1.members.0: no member is called 'bigg'"),
        ("stages.1.members=[small]", "stages.1.members.0: 'small' is in stage 1 already"),
        ("stages.0.members=[]", "stages.0.members: list should have at least 1 item"),
        ("stages.1.questions={}", "stages.1.questions: expected one rule of least_sure, "),
        ("stages.1.questions={risk: 0.1, margin_below: 0.1}", "stages.1.questions: expected one rule"),
        ("stages.1.questions.least_sure=40", "questions.least_sure: input should be less than or equal"),
        ("stages.0.questions={risk: 0.1}", "stages.0.questions: the first stage takes all"),
        ("stages.1.name=1 small", "stages.1.name: '1 small' comes twice"),
        ("members.third={model: z}", "members.third: is in no stage"),
        ("members.big.weight=0", "all members of 'hard' have weight 0"),
        ("deadline=soon", "run.yaml:10:11: deadline: expected a duration: 'soon'"),
        ("deadline=9", "deadline: input should be a valid string"),
        ("ensemble={over: votes}", "ensemble.over: input should be 'probabilities', 'logits' or 'ranks'"),
        ("calibration=platt", "calibration: input should be 'none', 'temperature' or 'isotonic'"),
        ("members.big.machine={dtype: float8}", "members.big.machine.dtype: input should be "),
        ("members.a/b={model: z}", "string should match pattern"),
        ("members.big.shots=none.csv", "members.big.shots: "),
        ("members.small_loglik={model: z}", "run.yaml:4:3: members: member 'small_loglik': results"),
        ("members={}", "members: dictionary should have at least 1 item"),
        ("retrieval.wiki=5", "retrieval.wiki: input should be a valid dictionary"),
    ],
)
def test_what_does_not_fit(tmp_path, setting, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, WHOLE, setting)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ("letters", 700, True)),
        (", head: auto, max_tokens: 9", ("auto", 9, True)),
        (", template: letters", ("letters", 700, False)),
        (", adapter_settings: ignore", ("auto", None, False)),
    ],
)
def test_an_adapter_is_asked_as_it_was_trained(given, expected, tmp_path):
    write_trained_settings(tmp_path, TrainedSettings(head="letters", max_tokens=700, chat=True))
    pipeline = read(tmp_path, f"members: {{a: {{model: x, adapter: {tmp_path}{given}}}}}\n")
    member = pipeline.members["a"].member
    assert (member.head, member.max_tokens, member.chat) == expected
