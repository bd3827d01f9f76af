"""strata.json beside an adapter: what is written is read, broken ones are refused, flags go first."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.engine.adapters.trained_settings import (
    TrainedSettings,
    read_trained_settings,
    write_trained_settings,
)
from strata.engine.config import ScoreConfig
from strata.engine.types import InputError

SETTINGS = TrainedSettings(head="letters", max_tokens=700, normalize="token", chat=True, system="Be terse.")


def test_what_is_written_is_read(tmp_path):
    write_trained_settings(tmp_path, SETTINGS)
    assert read_trained_settings(tmp_path) == SETTINGS
    assert read_trained_settings(tmp_path / "elsewhere") is None


def test_a_template_goes_along(tmp_path):
    (tmp_path / "mine.yaml").write_text("text: '{{ prompt }} {{ option }}'\n")
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_trained_settings(folder, SETTINGS, tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").unlink()
    found = read_trained_settings(folder)
    assert found.template == str(folder / "template.yaml")
    assert Path(found.template).read_text() == "text: '{{ prompt }} {{ option }}'\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "strata.json: "),
        ('{"template": "../../secret"}', "strata.json: .*template"),
        ('{"max_tokens": 0}', "strata.json: .*max_tokens"),
        ('{"chat": "yes"}', "strata.json: .*chat"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(text, reason, tmp_path):
    (tmp_path / "strata.json").write_text(text)
    with pytest.raises(InputError, match=reason) as refused:
        read_trained_settings(tmp_path)
    assert "\n" not in str(refused.value)


def score_config(adapter: Path, **flags: object) -> ScoreConfig:
    return ScoreConfig(model=Path("m"), questions=Path("q"), out=Path("o"), adapter=(adapter,), **flags)


def test_settings_that_are_not_given_are_the_adapters(tmp_path):
    write_trained_settings(tmp_path, SETTINGS)
    (member,) = score_config(tmp_path).members()
    assert (member.head, member.max_tokens, member.normalize) == ("letters", 700, "token")
    assert (member.chat, member.system, member.template) == (True, "Be terse.", None)


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        ({"head": "loglik"}, {"max_tokens", "normalize", "chat", "system"}),
        ({"max_tokens": 9}, {"head", "normalize", "chat", "system"}),
        ({"normalize": "char"}, {"head", "max_tokens", "chat", "system"}),
        ({"template": "letters"}, {"head", "max_tokens", "normalize"}),
        ({"adapter_settings": "ignore"}, set()),
    ],
    ids=["head", "max tokens", "normalize", "template", "ignored"],
)
def test_flags_win(flags, taken, tmp_path):
    write_trained_settings(tmp_path, SETTINGS)
    config = score_config(tmp_path, **flags)
    assert config.settings_of_adapters()[tmp_path].keys() == taken
    (member,) = config.members()
    for name, value in flags.items():
        assert name == "adapter_settings" or getattr(member, name) == value


def test_a_classifier_is_told_by_its_task_alone(tmp_path):
    write_trained_settings(tmp_path, TrainedSettings(head="classify"))
    assert score_config(tmp_path).settings_of_adapters() == {tmp_path: {}}
