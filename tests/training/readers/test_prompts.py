"""What training shows is what scoring shows: chats and few-shot examples, token for token."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.questions.question_file import read_questions
from strata.engine.questions.shots import read_shots
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, RunWarnings
from strata.training.config import TrainConfig
from strata.training.open_reader import open_reader

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
WAYS = {
    "chat": {"chat": True, "system": "Be brief."},
    "shots": {"num_shots": 2},
    "both": {"chat": True, "num_shots": 2},
}


@pytest.fixture
def model(checkpoint, tmp_path: Path) -> Path:
    folder = shutil.copytree(checkpoint("llama-gqa"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_prompts_are_those_of_scoring(way, model, questions, fixed_rates, tmp_path) -> None:
    asked, settings = read_questions(questions, warnings=RunWarnings()), WAYS[way]
    shots = {"shots": questions} if "num_shots" in settings else {}
    config = TrainConfig(
        model=model, out=tmp_path / "out", questions=questions, task="letters", **settings, **shots
    )
    config.check()
    found = open_reader(config).render(asked)
    given = read_shots(questions, 2, context_column="context") if shots else ()
    member = Member(model=model, head="letters", shots=given, **settings)
    with Scorer.open([member], MachineSettings(devices="cpu")) as scorer:
        expected = scorer.render(asked)
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine.branches, theirs.branches, strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert one.targets == other.targets
    plain = open_reader(TrainConfig(model=model, out=tmp_path, questions=questions, task="letters"))
    assert plain.render(asked)[0].branches[0].text != found[0].branches[0].text


@pytest.mark.parametrize("task", ["lm", "multiple-choice", "classify"])
def test_tasks_without_such_prompts_refuse_them(task, questions, tmp_path) -> None:
    source = {"passages": questions} if task == "lm" else {"questions": questions}
    config = TrainConfig(model=tmp_path, out=tmp_path, task=task, shots=questions, **source)
    with pytest.raises(InputError, match=f"--shots: --task {task}"):
        config.check()


def test_a_classifier_head_is_not_asked_in_a_chat(model, questions, tmp_path) -> None:
    config = TrainConfig(model=model, out=tmp_path, questions=questions, task="choice", chat=True)
    with pytest.raises(InputError, match="--chat: --task choice"):
        config.check()
