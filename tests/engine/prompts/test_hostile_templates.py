"""Templates that strangers wrote: refused in one line, in bounded time and memory, or rendered as before.

The independent check of what is still rendered is Jinja's own sandbox on the same texts.
"""

from __future__ import annotations

import threading
import tracemalloc
from time import perf_counter

import jinja2.sandbox
import pytest

from strata.engine.heads.registry import HEADS
from strata.engine.prompts.bounds.sandbox import (
    MAX_CHARACTERS,
    MAX_SECONDS,
    BoundedEnvironment,
    render_bounded,
)
from strata.engine.prompts.drafts import DraftWriter
from strata.engine.prompts.layouts import PlainLayout
from strata.engine.prompts.templates import load_template
from strata.engine.types import InputError, Question

QUESTION = Question(id="7", prompt="Why?", options=("the moon", "sand", "it is"), context="It is so. " * 20)
DOUBLING = "{% set n = namespace(t='ab') %}{% for i in range(64) %}{% set n.t = MORE %}{% endfor %}"

HOSTILE = {
    "tpl_escape_map_attr": ("{{ options | map(attribute='__class__') | list | length }}", "not allowed"),
    "tpl_escape_attr": ("{% set f = option.__class__.__mro__ %}", "not allowed"),
    "tpl_escape_filter": ("{% if option | attr('__class__') %}{% endif %}", "not allowed"),
    "tpl_escape_format": ("{{ '{0.__class__}'.format(option) }}", "not allowed"),
    "tpl_lipsum": ("{{ lipsum(5) }}", "'lipsum'"),
    "tpl_random": ("{{ options | random }}", "random"),
    "tpl_address": ("{{ range }}", "shows a"),
    "tpl_address_of_a_generator": ("{{ options | map('first') }}", "shows a"),
    "tpl_nested_loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "seconds",
    ),
    "tpl_small_nested_loops": (
        "{% for a in range(60) %}" * 8 + "{% if a == 61 %}x{% endif %}" + "{% endfor %}" * 8,
        "seconds",
    ),
    "tpl_long_loop": ("{% for a in range(99999) %}" + "x" * 10_000 + "{% endfor %}", "characters"),
    "tpl_str_mul": ("{{ 'a' * 10 ** 10 }}", "characters"),
    "tpl_list_mul": ("{{ [option] * 10 ** 9 }}", "characters"),
    "tpl_concat": (DOUBLING.replace("MORE", "n.t ~ n.t"), "characters"),
    "tpl_plus": (DOUBLING.replace("MORE", "n.t + n.t"), "characters"),
    "tpl_replace": (DOUBLING.replace("MORE", "n.t | replace('a', 'aa')"), "characters"),
    "tpl_replace_method": (DOUBLING.replace("MORE", "n.t.replace('a', 'aaa')"), "characters"),
    "tpl_join": (DOUBLING.replace("MORE", "[n.t, n.t] | join(n.t)"), "characters"),
    "tpl_join_method": (DOUBLING.replace("MORE", "n.t.join([n.t, n.t])"), "characters"),
    "tpl_join_of_a_map": ("{{ range(99999) | map('string') | join('a' * 9999) }}", "characters"),
    "tpl_nested_lists": (DOUBLING.replace("MORE", "[n.t, n.t]"), "items"),
    "tpl_nested_sets": (
        "{% set x %}ab{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 64,
        "characters",
    ),
    "tpl_macro": (
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{{ " + "f(" * 40 + "'ab'" + ")" * 40 + " }}",
        "char",
    ),
    "tpl_pow": ("{% if 10 ** (10 ** 9) %}x{% endif %}", "bits"),
    "tpl_pow2": ("{{ 10 ** 5000 }}", "bits"),
    "tpl_mul_of_integers": (DOUBLING.replace("'ab'", "3").replace("MORE", "n.t * n.t"), "bits"),
    "tpl_digits": ("{{ " + "9" * 5000 + " }}", "digits"),
    "tpl_round": ("{{ 5 | round(-(10 ** 9)) }}", "filter"),
    "tpl_tojson": ("{{ options | tojson(indent=10 ** 9) }}", "filter"),
    "tpl_center": ("{{ 'a' | center(10 ** 10) }}", "characters"),
    "tpl_center_method": ("{{ 'a'.center(10 ** 10) }}", "characters"),
    "tpl_ljust": ("{{ 'a'.ljust(10 ** 10) }}", "characters"),
    "tpl_zfill": ("{{ 'a'.zfill(10 ** 10) }}", "characters"),
    "tpl_expandtabs": ("{{ '\t'.expandtabs(10 ** 9) }}", "characters"),
    "tpl_indent": ("{{ 'a\nb' | indent(10 ** 10) }}", "characters"),
    "tpl_wordwrap": ("{{ 'a b c' | wordwrap(1, wrapstring='a' * 10 ** 7) }}", "characters"),
    "tpl_batch": ("{{ options | batch(10 ** 9, 'x') | list }}", "characters"),
    "tpl_slice": ("{{ options | slice(10 ** 9) | list }}", "characters"),
    "tpl_percent": ("{{ '%99999999d' % 1 }}", "characters"),
    "tpl_many_percents": ("{{ ('%9999d' * 9999) % ((1,) * 9999) }}", "characters"),
    "tpl_percent_argument": ("{{ '%*d' % (10 ** 9, 1) }}", "argument"),
    "tpl_format": ("{{ '%99999999d' | format(1) }}", "characters"),
    "tpl_format_method": ("{{ '{:>99999999}'.format(1) }}", "characters"),
    "tpl_format_argument": ("{{ '{:>{}}'.format(1, 10 ** 9) }}", "characters"),
    "tpl_bytes": ("{{ (1).to_bytes(10 ** 9) }}", "not allowed"),
    "tpl_range": ("{{ range(10 ** 9) | list }}", "Range too big"),
    "tpl_recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end"),
    "tpl_branching_recursion": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "seconds",
    ),
    "tpl_recursive_loop": ("{% for x in [options] recursive %}{{ loop([x]) }}{% endfor %}", "recursive"),
    "tpl_deep": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    "tpl_deep_list": ("{{ " + "[" * 900 + "]" * 900 + " }}", "nested too deeply"),
    "tpl_deep_if": ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, "nested too deeply"),
    "tpl_deep_for": ("{% for a in 'a' %}" * 60 + "{% endfor %}" * 60, "nested too deeply"),
    "tpl_include": ("{% include '/etc/passwd' %}", "loader"),
    "tpl_large": ("x" * 2_000_000, "characters"),
    "tpl_wrong_filter_use": ("{{ [1] | dictsort }}", "cannot be rendered"),
}


def write_drafts(text: str, path) -> None:
    path.write_text("{{ option }}" + text, encoding="utf-8")
    head = HEADS["loglik"]
    DraftWriter(load_template(str(path), head=head), head=head, layout=PlainLayout()).write(
        QUESTION, QUESTION.context
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr("strata.engine.prompts.bounds.sandbox.MAX_SECONDS", 0.5)
    text, reason = HOSTILE[name]
    with pytest.raises(InputError, match=reason) as refused:
        write_drafts(text, tmp_path / "t.j2")
    message = str(refused.value)
    assert "t.j2" in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "name", ["tpl_str_mul", "tpl_center", "tpl_concat", "tpl_many_percents", "tpl_nested_sets"]
)
def test_refused_before_the_memory_is_taken(name, tmp_path):
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            write_drafts(HOSTILE[name][0], tmp_path / "t.j2")
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_CHARACTERS
    finally:
        tracemalloc.stop()


def test_the_time_limit_holds_in_any_thread(tmp_path, monkeypatch):
    monkeypatch.setattr("strata.engine.prompts.bounds.sandbox.MAX_SECONDS", 0.2)
    assert MAX_SECONDS > 1
    errors = []

    def write():
        try:
            write_drafts(HOSTILE["tpl_nested_loops"][0], tmp_path / "t.j2")
        except InputError as error:
            errors.append(str(error))

    started = perf_counter()
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert perf_counter() - started < 30
    assert ["seconds" in error for error in errors] == [True]


GOOD = [
    "{{ context }}\n{{ prompt }} {{ option }}\n",
    "{% for l, t in options %}{{ loop.index }}/{{ loop.length }} {{ l }}. {{ t }}\n{% endfor %}",
    "{% for o in options if o[0] != 'B' %}{{ o[1] }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{{ options | map(attribute=1) | join('; ') }} {{ options | length }} {{ (options | first)[1] | upper }}",
    "{% set n = namespace(k=0) %}{% for x in options %}{% set n.k = n.k + 2 %}{% endfor %}{{ n.k }}",
    "{% macro f(l, t) %}{{ l }}) {{ t }}\n{% endmacro %}{% for l, t in options %}{{ f(l, t) }}{% endfor %}",
    "{{ prompt ~ ' -> ' ~ 3 * 4 }} {{ '%s: %05.1f' % (prompt, 2 ** 10) }}",
    "{{ '{:>8}|{}'.format(option, 7) }} {{ '{a[b]}'.format_map({'a': {'b': 1}}) }}",
    "{{ context | trim | truncate(30) }}{{ prompt | replace('?', '!') | center(20) }}",
    "{{ 'a\nb' | indent(2) }}{{ context | wordwrap(20) }}{{ option.replace('o', '0').ljust(20) }}",
    "{{ options }} {{ {'a': [1, 2.5, none, true]} | tojson }} {{ prompt.split('h') }}",
    "{{ 7 // 2 }} {{ 7 % 4 }} {{ -7.5 | round(1) }} {{ '12' | int + 1 }}",
    "{% set x %}{{ prompt }}, {{ option }}{% endset %}{{ x }}{% filter upper %}{{ x }}{% endfilter %}",
    "{% for i in range(100) %}{{ i }},{% endfor %}{{ range(3) | list }}{{ options | batch(2) | list }}",
    "{% for x in [] %}{% else %}none{% endfor %}{{ 'x' if context else 'y' }}{{ unknown | default('d') }}",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_templates_render_as_jinja_does(text):
    settings = {"keep_trailing_newline": True, "undefined": jinja2.StrictUndefined}
    variables = {
        "context": QUESTION.context,
        "prompt": QUESTION.prompt,
        "option": QUESTION.options[0],
        "options": list(zip("ABC", QUESTION.options, strict=True)),
    }
    expected = jinja2.sandbox.SandboxedEnvironment(**settings).from_string(text).render(variables)
    assert render_bounded(BoundedEnvironment(**settings).from_string(text), variables) == expected


LAUGHS = "a: &a ['ha', 'ha']\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE_YAML = {
    "yaml_laughs_labels": (LAUGHS + "labels: *i\ntext: '{{ option }}'\n", "aliases are not allowed"),
    "yaml_laughs": (LAUGHS + "text: '{{ option }}'\n", "aliases are not allowed"),
    "yaml_deep": ("text: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "yaml_deep_labels": ("text: '{{ option }}'\nlabels: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "yaml_deep_mapping": ("text: " + "{a: " * 5000 + "}" * 5000, "nested too deeply"),
    "yaml_long_labels": ("text: '{{ option }}'\nlabels: [" + "a, " * 9999 + "b]", "two texts"),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused_in_one_line(name, tmp_path):
    text, reason = HOSTILE_YAML[name]
    path = tmp_path / "t.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=reason) as refused:
        load_template(str(path), head=HEADS["yes-no"])
    assert "t.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
