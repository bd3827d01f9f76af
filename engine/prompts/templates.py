"""Prompt templates: the built-in ones, a user's file, and whether they fit a head. Knows no tokens.

A template is Jinja2 with the variables `context` (may be empty), `prompt`, `option` (the option scored) and
`options` (the pairs (letter, text) in the order shown). Nothing is trimmed: a newline at a template's end
is part of it.

In a chat, a template is the user's message, up to what is scored. A file that uses `messages` is a chat
template itself, as transformers has them; the message is then the head's own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import jinja2.meta
import yaml

from strata.engine.files import read_utf8
from strata.engine.heads.head import Head
from strata.engine.json_files import shown
from strata.engine.prompts.bounds.sandbox import BoundedEnvironment
from strata.engine.prompts.built_in_texts import (
    CHAT_LETTERS,
    CHAT_YES_NO,
    CHAT_YES_NO_LISTED,
    LETTERS,
    STATEMENT,
    STATEMENT_LISTED,
    YES_NO,
    YES_NO_LISTED,
)
from strata.engine.types import InputError

VARIABLES = ("context", "prompt", "option", "options")
DEFAULT_LABELS = ("yes", "no")


@dataclass(frozen=True, kw_only=True)
class Template:
    """A prompt template.

    `labels` are the texts that say yes and no, written right after the prompt (head yes-no only; None means
    DEFAULT_LABELS). `lists_options` says that the prompt shows all options. `frame` is a chat template in
    place of the tokenizer's.
    """

    name: str
    text: str
    labels: tuple[str, str] | None = None
    lists_options: bool = False
    frame: str | None = None

    def __str__(self) -> str:
        return self.name


BUILT_IN = {
    "statement": Template(name="statement", text=STATEMENT),
    "yes-no": Template(name="yes-no", text=YES_NO, labels=DEFAULT_LABELS),
    "letters": Template(name="letters", text=LETTERS, lists_options=True),
    "statement-listed": Template(name="statement-listed", text=STATEMENT_LISTED, lists_options=True),
    "yes-no-listed": Template(
        name="yes-no-listed", text=YES_NO_LISTED, labels=DEFAULT_LABELS, lists_options=True
    ),
    "chat-yes-no-listed": Template(
        name="chat-yes-no-listed", text=CHAT_YES_NO_LISTED, labels=("Yes", "No"), lists_options=True
    ),
    "text": Template(name="text", text="{{ prompt }}"),
    "chat-yes-no": Template(name="chat-yes-no", text=CHAT_YES_NO, labels=("Yes", "No")),
    "chat-letters": Template(name="chat-letters", text=CHAT_LETTERS, lists_options=True),
}

_ENVIRONMENT = BoundedEnvironment(
    keep_trailing_newline=True, undefined=jinja2.StrictUndefined, autoescape=False
)
MAX_TEMPLATE_CHARACTERS = 1_000_000
MAX_YAML_DEPTH = 8


def load_template(
    given: str | Template | None, *, head: Head, chat: bool = False, lists_options: bool = False
) -> Template:
    """Finds the template to use with a head.

    Args:
        given: a template, the name of a built-in one, or a file: .yaml/.yml with the keys `text` and
            optionally `labels` (two texts), or any other suffix with the bare Jinja text; None takes the
            head's.
        head: what scores the options.
        chat: the template is a user's message, or a chat template that uses `messages`.
        lists_options: take the one of the head's that lists the options.

    Raises:
        InputError: no such template, a syntax error, an unknown variable, or not what the head needs.
    """
    own = _own_template(f"{head.template}-listed" if lists_options else head.template, chat=chat)
    given = own if given is None else given
    template = given if isinstance(given, Template) else BUILT_IN.get(given) or _read_template(given)
    if template.frame is not None:
        if not chat:
            raise InputError(f"template {template.name}: uses 'messages', expected --chat with it")
        template = replace(own, name=template.name, frame=template.frame)
    compile_template(template, head=head)
    return template


def _own_template(name: str, *, chat: bool) -> Template:
    return BUILT_IN.get(f"chat-{name}" if chat else name) or BUILT_IN[name]


def compile_template(template: Template, *, head: Head) -> jinja2.Template:
    """Compiles a template after checking that it gives the head what it needs.

    Raises:
        InputError: a syntax error (with its line), an unknown variable, or a needed variable that is never
            used, or one that is used but forbidden.
    """
    used = find_variables(template.name, template.text)
    if head.needs not in used:
        raise InputError(f"template {template.name}: never uses '{head.needs}', which head {head.name} needs")
    if head.forbids in used:
        raise InputError(
            f"template {template.name}: uses '{head.forbids}', but head {head.name} shows all of 'options' "
            "at once"
        )
    try:
        return _compile(template.text)
    except jinja2.TemplateSyntaxError as error:
        raise _syntax_error(template.name, error) from error


@functools.lru_cache(maxsize=64)
def _compile(text: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(text)


@functools.lru_cache(maxsize=64)
def find_variables(name: str, text: str) -> frozenset[str]:
    """The template variables that a Jinja text uses.

    Raises:
        InputError: a syntax error, an attribute that a literal does not have, or a variable that is not one
            of VARIABLES; all name the template.
    """
    try:
        tree = _ENVIRONMENT.parse(text)
        used = jinja2.meta.find_undeclared_variables(tree) - set(_ENVIRONMENT.globals)
    except jinja2.TemplateSyntaxError as error:
        raise _syntax_error(name, error) from error
    except jinja2.UndefinedError as error:
        raise InputError(f"template {name}: {error.message}, expected an attribute that there is") from error
    unknown = sorted(used - set(VARIABLES))
    if unknown:
        raise InputError(f"template {name}: unknown variable {unknown[0]!r}, expected {', '.join(VARIABLES)}")
    return frozenset(used)


def _syntax_error(name: str, error: jinja2.TemplateSyntaxError) -> InputError:
    return InputError(f"template {name}, line {error.lineno} of the text: {error.message}")


def _read_template(name: str) -> Template:
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"--template {name!r}: no such file, and expected one of {', '.join(BUILT_IN)} or a file"
        )
    text, labels = read_utf8(path), None
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise InputError(
            f"template {name}: {len(text):,} characters; expected at most {MAX_TEMPLATE_CHARACTERS:,}"
        )
    if path.suffix.lower() in (".yaml", ".yml"):
        text, labels = _parse_yaml_template(name, text)
    if not text.strip():
        raise InputError(f"template {name}: is empty, expected Jinja text")
    if _uses_messages(text):
        return Template(name=name, text="", frame=text)
    lists_options = "options" in find_variables(name, text)
    return Template(name=name, text=text, labels=labels, lists_options=lists_options)


class _PlainLoader(yaml.BaseLoader):
    """Scalars as text, no alias, since those can expand without end, and few levels.

    As text, for YAML would otherwise read the labels yes and no as booleans.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(problem="aliases are not allowed", problem_mark=mark)
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            raise yaml.composer.ComposerError(problem="nested too deeply", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _uses_messages(text: str) -> bool:
    """Told by its words alone: chat templates may hold tags that ours do not know."""
    try:
        return any(kind == "name" and word == "messages" for _, kind, word in _ENVIRONMENT.lex(text))
    except jinja2.TemplateSyntaxError:
        return False


def _parse_yaml_template(name: str, text: str) -> tuple[str, tuple[str, str] | None]:
    try:
        fields = yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(
            f"template {name}{line}: not valid YAML ({getattr(error, 'problem', error)})"
        ) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise InputError(f"template {name}: expected a YAML mapping with the key 'text'")
    unknown = sorted(set(fields) - {"text", "labels"})
    if unknown:
        raise InputError(f"template {name}: unknown key {shown(unknown[0])}, expected text and labels")
    return fields["text"], _parse_labels(name, fields["labels"]) if "labels" in fields else None


def _parse_labels(name: str, labels: object) -> tuple[str, str]:
    if not isinstance(labels, list) or len(labels) != 2 or not all(isinstance(x, str) and x for x in labels):
        raise InputError(
            f"template {name}, key 'labels': {shown(labels)}, expected two texts such as [yes, no]"
        )
    if labels[0] == labels[1]:
        raise InputError(
            f"template {name}, key 'labels': both are {labels[0]!r}, expected two different texts"
        )
    return labels[0], labels[1]
