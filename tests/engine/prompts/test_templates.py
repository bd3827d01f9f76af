"""Templates: the built-in ones fit their heads; a user's file is read or refused in one line."""

import pytest

from strata.engine.heads.registry import HEADS
from strata.engine.prompts.templates import BUILT_IN, Template, load_template
from strata.engine.types import InputError


@pytest.fixture
def write(tmp_path):
    def run(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return run


DEFAULTS = {
    "binary": "statement",
    "contrast": "statement",
    "yes-no": "yes-no",
    "letters": "letters",
    "loglik": "statement",
    "classify": "text",
}


def test_each_head_has_a_template():
    loaded = {name: load_template(None, head=head).name for name, head in HEADS.items()}
    assert loaded == DEFAULTS
    assert all(load_template(name, head=HEADS[head]) is BUILT_IN[name] for head, name in DEFAULTS.items())


def test_bare_text(write):
    name = write("t.jinja", "{{ prompt }}\n{{ option }}\n")
    assert load_template(name, head=HEADS["binary"]) == Template(
        name=name, text="{{ prompt }}\n{{ option }}\n"
    )


def test_yaml_keeps_yes_and_no_as_text(write):
    name = write("t.yaml", "text: '{{ options }} {{ option }}'\nlabels: [yes, no]\n")
    expected = Template(
        name=name, text="{{ options }} {{ option }}", labels=("yes", "no"), lists_options=True
    )
    assert load_template(name, head=HEADS["yes-no"]) == expected


BAD_TEMPLATES = {
    "syntax": ("t.j2", "{{ option }}\n{% if %}", "yes-no", "line 2"),
    "unknown filter": ("t.j2", "\n{{ option | nope }}", "yes-no", "line 2.*nope"),
    "unknown variable": ("t.j2", "{{ option }}{{ answer }}", "yes-no", "'answer'.*context, prompt, option"),
    "no option": ("t.j2", "{{ prompt }}", "binary", "'option'.*binary"),
    "no options": ("t.j2", "{{ option }}", "letters", "'options'.*letters"),
    "option among letters": ("t.j2", "{{ options }}{{ option }}", "letters", "'option'.*letters"),
    "empty": ("t.j2", " \n", "yes-no", "empty"),
    "not a mapping": ("t.yml", "[a, b]", "yes-no", "'text'"),
    "not YAML": ("t.yml", "text: [a\nb: c: d", "yes-no", "line 2.*YAML"),
    "unknown key": ("t.yml", "text: '{{ option }}'\nlabel: a", "yes-no", "'label'"),
    "one label": ("t.yml", "text: '{{ option }}'\nlabels: [a]", "yes-no", "'labels'"),
    "an empty label": ("t.yml", "text: '{{ option }}'\nlabels: [a, '']", "yes-no", "'labels'"),
    "equal labels": ("t.yml", "text: '{{ option }}'\nlabels: [a, a]", "yes-no", "'a'"),
}


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_bad_templates_are_refused_in_one_line(case, write):
    name, text, head, message = BAD_TEMPLATES[case]
    with pytest.raises(InputError, match=message) as refused:
        load_template(write(name, text), head=HEADS[head])
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_that_is_neither_built_in_nor_a_file():
    with pytest.raises(InputError, match=r"'nope'.*statement, yes-no, letters"):
        load_template("nope", head=HEADS["yes-no"])
