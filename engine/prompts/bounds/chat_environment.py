"""Chat templates within the sandbox's bounds: what transformers gives them, and the text that it would write.

A chat template comes with a model's folder, so it is a stranger's. transformers renders it in Jinja's own
sandbox, which bounds neither time nor characters; here the same globals, filters and tags stand in ours.
Knows nothing of questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from strata.engine.prompts.bounds.growth import bear, size_of
from strata.engine.prompts.bounds.sandbox import BoundedEnvironment, bound_filter, render_bounded


class _GenerationTag(Extension):
    """`{% generation %}` marks what a model is trained on; the text is that of its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _write_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _of_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> int:
    """Characters, at most about; of an indent it is refused ahead, see `bear`."""
    return size_of(value) * (1 + size_of(separators or ())) + bear(indent or 0)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Dict:
    """`dict(...)`, without the type that a template could do more with."""

    def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
        return dict(*given, **named)


_ENVIRONMENT = BoundedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
)
_ENVIRONMENT.filters["tojson"] = bound_filter(_write_json, _of_json)
_ENVIRONMENT.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now, "dict": _Dict()}


def compile_chat_template(text: str) -> jinja2.Template:
    """A chat template that `render_chat` renders.

    Raises:
        jinja2.TemplateSyntaxError: it is not Jinja, or nested too deeply.

    Source: `_compile_jinja_template` of transformers 5.23.
    """
    return _ENVIRONMENT.from_string(text)


def render_chat(
    template: jinja2.Template,
    messages: Sequence[Mapping[str, str]],
    special_tokens: Mapping[str, Any],
    *,
    begins_answer: bool,
) -> str:
    """The text of a conversation, as `apply_chat_template(messages, tokenize=False)` writes it.

    Args:
        template: see `compile_chat_template`.
        messages: roles and contents.
        special_tokens: texts of the tokenizer's special tokens by name, such as bos_token.
        begins_answer: the assistant's next turn is begun (`add_generation_prompt`).

    Raises:
        RENDERING_ERRORS: of the sandbox.
    """
    variables = {"messages": list(messages), "tools": None, "documents": None}
    return render_bounded(template, {**special_tokens, **variables, "add_generation_prompt": begins_answer})
