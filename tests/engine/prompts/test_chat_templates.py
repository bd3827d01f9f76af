"""Chat templates, which come with a model's folder: bounded, and where allowed the text of transformers.

The independent check is transformers' own `apply_chat_template` on the same templates.
"""

import pytest

from strata.engine.prompts.bounds import sandbox
from strata.engine.prompts.layouts import ChatLayout
from strata.engine.types import InputError

from .chat_tokenizers import CHAT_TEMPLATES, chat_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be  brief.\n"},
    {"role": "user", "content": " Why <b>'so'</b>? é\n\n"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "{{ 7 * 7 }}"},
]

# What models' templates use that plain Jinja lacks, or that differs by the environment's settings.
FEATURES = {
    **CHAT_TEMPLATES,
    "lines": (
        "{%- for m in messages %}\n    {%- if loop.first %}\n  {{ m.role }}:\n    {% endif %}\n  "
        "{% if m.role == 'user' %}\n x {{- m['content'] | trim }}\n  {% endif %}\n{%- endfor %}\n\n"
    ),
    "break": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = 1 %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{{ x }}{% endif %}{% endfor %}"
    ),
    "json": (
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}"
        "{{ messages[0] | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}"
    ),
    "namespace": (
        "{% set ns = namespace(last='', n=0) %}{% for m in messages %}"
        "{% set ns.last = m.content %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ ns.last }}"
    ),
    "dict": (
        "{% set d = dict(a=1, b=messages[0].role) %}{% for k, v in d.items() %}{{ k }}={{ v }}{% endfor %}"
    ),
    "tools": (
        "{% if tools is not none %}T{% endif %}{% if documents is defined %}D{% endif %}"
        "{{ tools }}{{ unknown }}{{ (unknown.x is defined) if unknown }}"
    ),
    "slices": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{{ messages[0]['content'] }}{% endif %}{% for m in rest %}"
        "{{ (loop.index0 % 2 == 0) != (m.role == 'user') }}{{ m.content.split('o')[-1].strip() }}"
        "{% endfor %}{{ bos_token + (messages | length | string) }}"
    ),
    "macro": (
        "{%- macro turn(m, last=false) -%}[{{ m.role | upper }}]{{ m.get('content', '') }}"
        "{{ eos_token if last }}{%- endmacro -%}{% for m in messages %}{{ turn(m, loop.last) }}"
        "{% endfor %}"
    ),
    "types": (
        "{{ messages[0].content is string }}{{ messages is mapping }}{{ messages is iterable }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}"
        "{{ [1] + [2] }}{{ none }}{{ true }}"
    ),
}


@pytest.mark.parametrize("begins_answer", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_texts_are_those_of_transformers(name, begins_answer):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = FEATURES[name]
    messages = MESSAGES[1:] if name == "inst" else MESSAGES
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begins_answer)
    assert ChatLayout(tokenizer)._render(messages, begins_answer=begins_answer) == expected


def test_of_several_templates_the_default_is_taken():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = {"default": FEATURES["macro"], "tool_use": FEATURES["json"]}
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert ChatLayout(tokenizer)._render(MESSAGES, begins_answer=False) == expected
    tokenizer.chat_template = {"tool_use": FEATURES["json"], "rag": FEATURES["macro"]}
    with pytest.raises(InputError, match="--chat"):
        ChatLayout(tokenizer)


HOSTILE = {
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
    "calls": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "seconds",
    ),
    "product": ("{{ 'a' * 10 ** 10 }}", "characters"),
    "power": ("{{ 10 ** (10 ** 9) }}", "bits"),
    "doubling": (
        "{% set n = namespace(t='ab') %}{% for i in range(64) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "characters",
    ),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end"),
    "json": ("{{ messages | tojson(indent=10 ** 9) }}", "filter"),
    "json_separators": ("{{ (range(9999) | list) | tojson(separators=('x' * 99999, ':')) }}", "characters"),
    "random": ("{{ lipsum(5) }}", "lipsum"),
    "escape": ("{{ messages.__class__.__mro__ }}", "not allowed"),
    "deep": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    "syntax": ("{% for %}", "--chat"),
    "lines": ("{{ raise_exception('a\nb\x1b[2J') }}", "a b"),
    "include": ("{% include '/etc/passwd' %}", "loader"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_chat_templates_are_refused_in_one_line(name, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
    text, reason = HOSTILE[name]
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = text
    with pytest.raises(InputError, match=reason) as refused:
        ChatLayout(tokenizer)
    assert str(refused.value).isprintable()
    assert "--chat: the chat template" in str(refused.value)
