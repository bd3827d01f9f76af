"""YAML with places: values as PyYAML reads them, errors with line and column, nothing that expands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ConfigDict

from strata.engine.json_files import Schema
from strata.engine.types import InputError
from strata.engine.yaml_files import YamlFile, override, read_yaml

TEXT = """\
base: &base {model: m, weight: 1.5, chat: yes}
members:
  big:
    <<: *base
    model: other
  list: [1, 2.5, {deep: ~}]
date: 2020-01-31
"""


def read(tmp_path: Path, text: str) -> YamlFile:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_yaml(path)


def test_values_are_those_of_pyyaml(tmp_path):
    expected = yaml.safe_load(TEXT)
    expected["date"] = "2020-01-31"
    assert read(tmp_path, TEXT).values == expected


def test_every_value_has_its_place(tmp_path):
    places = read(tmp_path, TEXT).places
    assert places["members", "big", "model"] == (5, 12)
    assert places["members", "big", "weight"] == (1, 32)
    assert places["members", "list", 2, "deep"] == (6, 25)


class _Inner(Schema):
    model_config = ConfigDict(extra="forbid")
    weight: float


class _Outer(Schema):
    members: dict[str, _Inner]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "members:\n  a: {weight: x}\n",
            ":2:15: members.a.weight: input should be a valid number, found 'x'",
        ),
        ("members:\n  a: {}\n", ":2:6: members.a.weight: field required"),
        ("members:\n  a:\n    weight: 1\n    colour: 2\n", ":4:13: members.a.colour: extra inputs are not"),
    ],
)
def test_what_does_not_fit_is_told_by_place(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, text).fit(_Outer)
    assert f"run.yaml{message}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "run.yaml:2:1: the key 'a' is there twice"),
        ("a: [\n", "run.yaml:2:1: not valid YAML"),
        ("- 1\n", "expected a YAML mapping"),
        ("", "holds nothing; expected a YAML mapping"),
        ("a: &a [*a, *a]\n", "found undefined alias|expected at most 20,000 values"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("x: 2020-99-01\n", "run.yaml:1:4: '2020-99-01' is no value"),
        ("x: \x00\n", "not valid YAML"),
        ("x: !!python/object:os.system {}\n", "holds|run.yaml"),
    ],
)
def test_bad_files_take_one_line(tmp_path, text, message):
    if text.startswith("x: !!python"):
        assert read(tmp_path, text).values == {"x": {}}
        return
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_aliases_that_multiply_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(InputError, match="expected at most 20,000 values"):
        read(tmp_path, "\n".join(lines))


def test_merges_that_multiply_take_no_time(tmp_path):
    """Ten to the power of twelve items for a parser that expands them; here they are one key."""
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 13)]
    assert read(tmp_path, "\n".join(lines)).values["a12"] == {"k": 1}


MERGES = """\
base: &base {model: m, weight: 1, head: h}
first: &first {<<: *base, model: other}
again: *first
both: {<<: [{weight: 3}, *first], head: own}
"""


def test_merges_are_those_of_pyyaml(tmp_path):
    """Of a mapping that overrides what it merges, and is named twice, too."""
    assert read(tmp_path, MERGES).values == yaml.safe_load(MERGES)
    with pytest.raises(InputError, match=r"run.yaml:1:9: expected a mapping, or a list of them, behind <<"):
        read(tmp_path, "a: {<<: 5}\n")


def test_settings_are_put_in(tmp_path):
    file = override(read(tmp_path, TEXT), ["members.big.weight=3", "members.list.2.deep=[a]", "new.key=no"])
    assert file.values["members"]["big"] == {"model": "other", "weight": 3, "chat": True}
    assert file.values["members"]["list"][2] == {"deep": ["a"]}
    assert file.values["new"] == {"key": False}
    assert read(tmp_path, TEXT).values["members"]["list"][2] == {"deep": None}


@pytest.mark.parametrize(
    "setting", ["a", "=1", "a..b=1", "members.list.9=1", "base.model.x=1", "a=[", "a=:", "a=2026-13-45"]
)
def test_settings_that_lead_nowhere(tmp_path, setting):
    with pytest.raises(InputError, match="--set"):
        override(read(tmp_path, TEXT), [setting])


def test_an_error_names_the_nearest_place(tmp_path):
    file = read(tmp_path, TEXT)
    assert str(file.error(("members", "big", "absent"), "x")).endswith("run.yaml:4:5: members.big.absent: x")
    assert str(file.error((), "x")).endswith("run.yaml:1:1: x")


@pytest.mark.parametrize("escape", ["\\0", "\\ud800"])
def test_texts_that_no_path_can_hold_are_refused(tmp_path, escape):
    with pytest.raises(InputError, match=r"run.yaml:1:12: .*expected UTF-8 text"):
        read(tmp_path, f'a: {{model: "x{escape}"}}')
    with pytest.raises(InputError, match=r"--set 'a'.*expected UTF-8 text"):
        override(read(tmp_path, "a: 1"), [f'a="{escape}"'])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 3000, "nested too deeply"),
        ("[" * 40 + "]" * 40, "32 levels"),
        ("&a [*a]", "32 levels"),
        ("{a: 1, a: 2}", "the key 'a' is there twice"),
    ],
)
def test_settings_have_the_bounds_of_a_file(tmp_path, text, message):
    with pytest.raises(InputError, match=f"--set 'x'.*{message}"):
        override(read(tmp_path, "a: 1"), [f"x={text}"])
