"""Writes the texts of a question's branches: which there are for a head, and which characters are scored.

Knows no tokens. A text is looked at only through the template: where the context or the option stands is
found by rendering a second time with a marker in its place, never by searching for its text, which may
occur elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import jinja2

from strata.engine.prompts.templates import DEFAULT_LABELS, Template, compile_template, find_variables
from strata.engine.types import LETTERS, InputError, Question

# Random, so that no question's text can hold them.
CONTEXT_MARKER = f"context-{uuid4().hex}"
_OPTION_MARKER = f"option-{uuid4().hex}"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The text of one branch before it is tokenized; `option`, `order`, `label`, `text` as in `Branch`.

    `scored` is the span of the characters [start, end) whose tokens are the targets: those of the label, or
    of the option for head loglik (empty for an empty option). None when a classifier head reads the last
    token.
    """

    option: int
    order: tuple[int, ...]
    label: str | None
    text: str
    scored: tuple[int, int] | None


class DraftWriter:
    """Writes a question's drafts for one head and template."""

    def __init__(self, template: Template, *, head: str, rotates: bool) -> None:
        """Compiles the template.

        Args:
            template: what the branches look like.
            head: binary, contrast, yes-no, letters or loglik.
            rotates: head letters shows the options in every cyclic order instead of only their own.

        Raises:
            InputError: the template is broken or not fit for the head.
        """
        self.template = template
        self.head = head
        self.rotates = rotates
        self.uses_context = "context" in find_variables(template.name, template.text)
        self._compiled = compile_template(template, head=head)

    def write(self, question: Question, context: str) -> list[Draft]:
        """Writes all drafts of a question with this context.

        Raises:
            InputError: the template cannot be rendered with this question.
        """
        if self.head == "letters":
            return self._write_letters(question, context)
        drafts: list[Draft] = []
        for option in range(len(question.options)):
            drafts += self._write_option(question, context, option)
        return drafts

    def _write_letters(self, question: Question, context: str) -> list[Draft]:
        own_order = tuple(range(len(question.options)))
        drafts: list[Draft] = []
        for order in list_rotations(len(own_order)) if self.rotates else [own_order]:
            text = self._render(question, context, order)
            for letter, option in zip(LETTERS, order, strict=False):
                drafts.append(_label_draft(text, letter, option, order))
        return drafts

    def _write_option(self, question: Question, context: str, option: int) -> list[Draft]:
        own_order = tuple(range(len(question.options)))
        shown = own_order if self.template.lists_options else ()
        text = self._render(question, context, own_order, question.options[option])
        if self.head == "yes-no":
            return [
                _label_draft(text, label, option, shown) for label in self.template.labels or DEFAULT_LABELS
            ]
        scored = None
        if self.head == "loglik":
            scored = self._find_option(question, context, option, text)
        return [Draft(option=option, order=shown, label=None, text=text, scored=scored)]

    def _find_option(self, question: Question, context: str, option: int, text: str) -> tuple[int, int]:
        own_order = tuple(range(len(question.options)))
        if not question.options[option]:
            return (0, 0)
        marked = self._render(question, context, own_order, _OPTION_MARKER)
        span = find_marked(text, marked, _OPTION_MARKER, question.options[option])
        if span is None:
            raise InputError(
                f"template {self.template.name}: cannot tell where the option stands "
                f"(question id {question.id!r}), expected 'option' to be used as it is"
            )
        return span

    def _render(
        self, question: Question, context: str, order: Sequence[int], option: str | None = None
    ) -> str:
        variables: dict[str, object] = {"context": context, "prompt": question.prompt}
        variables["options"] = [
            (letter, question.options[i]) for letter, i in zip(LETTERS, order, strict=False)
        ]
        if option is not None:
            variables["option"] = option
        try:
            return self._compiled.render(variables)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"template {self.template.name}: cannot be rendered (question id {question.id!r}): {error}"
            ) from error


def list_rotations(num_options: int) -> list[tuple[int, ...]]:
    """All cyclic orders of the options; the r-th starts with option r."""
    own_order = tuple(range(num_options))
    return [own_order[first:] + own_order[:first] for first in own_order]


def find_marked(text: str, marked: str, marker: str, value: str) -> tuple[int, int] | None:
    """Finds the characters of `text` that stand where the last marker stands in `marked`.

    Args:
        text: rendered with `value` in a variable.
        marked: rendered with the marker in its place.
        marker: what to look for.
        value: what the other uses of the variable, before the last, are taken to show.

    Returns:
        The span [start, end), or None when the two texts differ in more than the variable.
    """
    before, found, after = marked.rpartition(marker)
    before = before.replace(marker, value)
    fits = len(before) + len(after) <= len(text) and text.startswith(before) and text.endswith(after)
    return (len(before), len(text) - len(after)) if found and fits else None


def _label_draft(prompt_text: str, label: str, option: int, order: tuple[int, ...]) -> Draft:
    text = prompt_text + label
    return Draft(option=option, order=order, label=label, text=text, scored=(len(prompt_text), len(text)))
