"""Writes texts through a template, and finds the option in them; which texts there are is the head's affair.

Knows no tokens. A text is looked at only through the template: where the context or the option stands is
found by rendering a second time with a marker in its place, never by searching for its text, which may
occur elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

from strata.engine.heads.debiasing.debias import Order, stated_order
from strata.engine.heads.head import Draft, Head
from strata.engine.prompts.bounds.sandbox import RENDERING_ERRORS, render_bounded
from strata.engine.prompts.examples import Examples
from strata.engine.prompts.layouts import Layout
from strata.engine.prompts.siblings.option_list import MARKED_OPTIONS, find_listed
from strata.engine.prompts.templates import DEFAULT_LABELS, Template, compile_template, find_variables
from strata.engine.types import LETTERS, InputError, Question

# Random, so that no question's text can hold them.
CONTEXT_MARKER = f"context-{uuid4().hex}"
_OPTION_MARKER = f"option-{uuid4().hex}"


class DraftWriter:
    """Writes a question's drafts for one head and template: the head's `Pen`."""

    def __init__(
        self,
        template: Template,
        *,
        head: Head,
        masks_options: bool = False,
        layout: Layout,
        shots: Sequence[Question] = (),
        num_shots: int | None = None,
    ) -> None:
        """Compiles the template.

        Args:
            template: what the branches look like.
            head: says which branches there are.
            masks_options: the options that a draft lists are its siblings.
            layout: puts drafts where they stand.
            shots: answered questions to show before each; see `Examples`.
            num_shots: how many of them; None for all.

        Raises:
            InputError: the template is broken or not fit for the head.
        """
        self.uses_context = "context" in find_variables(template.name, template.text)
        self.labels: tuple[str, str] = template.labels or DEFAULT_LABELS
        self.lists_options = template.lists_options
        self._name, self._head, self._masks_options = template.name, head, masks_options
        self._compiled = compile_template(template, head=head)
        self._layout = layout
        self._examples = Examples(shots, num_shots, self._write_example)

    def write(self, question: Question, context: str, orders: Sequence[Order] = ()) -> list[Draft]:
        """Writes all drafts of a question with this context; without orders, in the stated one.

        Raises:
            InputError: the template cannot be rendered with this question, or lists options that are to be
                siblings otherwise than each in the same way.
        """
        drafts = self._write(question, context, orders)
        if self._masks_options:
            drafts = [self._with_siblings(draft, question, context) for draft in drafts]
        shots = self._examples.before(question)
        return [self._layout.place(draft, shots) for draft in drafts]

    def _write(self, question: Question, context: str, orders: Sequence[Order] = ()) -> list[Draft]:
        shown = orders or (stated_order(question),)
        return self._head.write_drafts(self, question, context, orders=shown)

    def _write_example(self, question: Question) -> list[Draft]:
        return self._write(question, question.context)

    def _with_siblings(self, draft: Draft, question: Question, context: str) -> Draft:
        marked = self._render_listed(
            context, question.prompt, MARKED_OPTIONS, question.options[draft.option], question.id
        )
        where = f"template {self._name} (question id {question.id!r})"
        return replace(draft, siblings=find_listed(draft.text, marked, question.options, where))

    def render(
        self,
        question: Question,
        context: str,
        *,
        order: Sequence[int] | None = None,
        option: int | None = None,
    ) -> str:
        """The template's text of a question; see `Pen.render`."""
        shown = None if option is None else question.options[option]
        return self._render(question, context, order, shown)

    def find_option(self, question: Question, context: str, *, option: int, text: str) -> tuple[int, int]:
        """Where `text` shows the option; see `Pen.find_option`. An empty one may stand at the end."""
        marked = self._render(question, context, None, _OPTION_MARKER)
        span = find_marked(text, marked, _OPTION_MARKER, question.options[option])
        if span is None and not question.options[option]:
            return (len(text), len(text))
        if span is None:
            raise InputError(
                f"template {self._name}: cannot tell where the option stands "
                f"(question id {question.id!r}), expected 'option' to be used as it is"
            )
        return span

    def _render(
        self, question: Question, context: str, order: Sequence[int] | None, option: str | None
    ) -> str:
        listed = question.options if order is None else [question.options[index] for index in order]
        pairs = tuple(zip(LETTERS, listed, strict=False))
        return self._render_listed(context, question.prompt, pairs, option, question.id)

    def _render_listed(
        self, context: str, prompt: str, listed: Sequence[tuple[str, str]], option: str | None, name: str
    ) -> str:
        variables: dict[str, object] = {"context": context, "prompt": prompt, "options": list(listed)}
        if option is not None:
            variables["option"] = option
        try:
            return render_bounded(self._compiled, variables)
        except RENDERING_ERRORS as error:
            raise InputError(
                f"template {self._name}: cannot be rendered (question id {name!r}): {error}"
            ) from error


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
