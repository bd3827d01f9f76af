"""Where a draft's text stands: behind worked examples, or in the last turns of a conversation.

Both take a draft apart in the same way: the text before what it scores is asked, what it scores is answered.
Knows no heads and no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from strata.engine.heads.head import Draft
from strata.engine.prompts.bounds.chat_environment import compile_chat_template, render_chat
from strata.engine.prompts.bounds.sandbox import RENDERING_ERRORS
from strata.engine.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER_MARKER = f"answer-{uuid4().hex}"
_EXAMPLE_SEPARATOR = "\n\n"


class Layout(Protocol):
    """Writes the text around a draft."""

    def place(self, draft: Draft, shots: Sequence[Draft]) -> Draft:
        """The draft behind examples, each a draft whose scored text is the right answer.

        Raises:
            InputError: a draft of a head that scores no text, or a chat template that cannot be rendered.
        """
        ...


class PlainLayout:
    """One text: examples with their answers, an empty line behind each, then the draft as it is.

    Source: `fewshot_delimiter` of lm-evaluation-harness 0.4.13, whose default is the empty line.
    """

    def place(self, draft: Draft, shots: Sequence[Draft]) -> Draft:
        """See `Layout`; without examples, the draft itself."""
        if not shots:
            return draft
        start, end = _scored_span(draft)
        before = "".join(shot.text[: _scored_span(shot)[1]] + _EXAMPLE_SEPARATOR for shot in shots)
        scored = (start + len(before), end + len(before))
        siblings = _move(draft.siblings, len(before))
        return replace(draft, text=before + draft.text, scored=scored, siblings=siblings)


class ChatLayout:
    """A conversation in a chat template: system, examples as turns, the question, and the answer begun.

    The text is that of `apply_chat_template(messages, add_generation_prompt=True)`, then whatever the
    template itself writes between that and an assistant's answer (a space in Llama 2's), then the answer.
    White space around messages and answers is left out. The text holds all special tokens there should be.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Finds out how the template begins an answer.

        Args:
            tokenizer: whose chat template, and special tokens in it, are used.
            system: the system message; None leaves it to the template.
            chat_template: Jinja text to use in place of the tokenizer's.

        Raises:
            InputError: no chat template, or one that refuses such a conversation.
        """
        if chat_template is None and not tokenizer.chat_template:
            raise InputError(
                "--chat: the model's tokenizer has no chat template; "
                "expected one, or a --template that uses 'messages'"
            )
        with _told_of_chat_template():
            self._template = compile_chat_template(tokenizer.get_chat_template(chat_template))
        self._special_tokens = tokenizer.special_tokens_map
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._lead = self._find_lead()

    def place(self, draft: Draft, shots: Sequence[Draft]) -> Draft:
        """See `Layout`."""
        turns = [turn for shot in shots for turn in _turns(*_split(shot))]
        asked, answer = _split(draft)
        prompt = self._render([*turns, *_turns(asked)], begins_answer=True) + self._lead
        text = prompt + answer
        # As for any continuation, spaces before it are scored with it; line feeds end the assistant's header.
        start = len(prompt.rstrip(" ")) if draft.is_continuation and answer else len(prompt)
        siblings: tuple[tuple[int, int], ...] = ()
        if draft.siblings:
            if draft.siblings[-1][1] > len(asked):
                raise InputError("--chat: expected a template with text behind the options, for --debias set")
            siblings = _move(draft.siblings, self._find_asked(turns, asked, prompt))
        return replace(draft, text=text, scored=(start, len(text)), siblings=siblings)

    def _find_asked(self, turns: list[dict[str, str]], asked: str, prompt: str) -> int:
        """Where the last message begins in the prompt, which must show it as it is."""
        before, _, _ = self._render([*turns, *_turns(_ANSWER_MARKER)], begins_answer=True).partition(
            _ANSWER_MARKER
        )
        if not prompt.startswith(before + asked):
            raise InputError(
                "--chat: the chat template changes the message; expected it as it is, for --debias set"
            )
        return len(before)

    def _find_lead(self) -> str:
        prompt = self._render(_turns("?"), begins_answer=True)
        whole = self._render(_turns("?", _ANSWER_MARKER), begins_answer=False)
        lead, found, _ = whole.removeprefix(prompt).partition(_ANSWER_MARKER)
        return lead if found and whole.startswith(prompt) else ""

    def _render(self, turns: list[dict[str, str]], *, begins_answer: bool) -> str:
        with _told_of_chat_template():
            messages = [*self._opening, *turns]
            return render_chat(self._template, messages, self._special_tokens, begins_answer=begins_answer)


@contextmanager
def _told_of_chat_template() -> Iterator[None]:
    try:
        yield
    except RENDERING_ERRORS as error:
        raise InputError(f"--chat: the chat template cannot write this conversation: {error}") from error


def _move(spans: Sequence[tuple[int, int]], num_characters: int) -> tuple[tuple[int, int], ...]:
    return tuple((start + num_characters, end + num_characters) for start, end in spans)


def _turns(asked: str, answer: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": asked}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def _split(draft: Draft) -> tuple[str, str]:
    """What is asked and what is answered."""
    start, end = _scored_span(draft)
    return draft.text[:start].rstrip(), draft.text[start:end].strip()


def _scored_span(draft: Draft) -> tuple[int, int]:
    if draft.scored is None:
        raise InputError(
            "--chat and --shots: a classifier reads no answer; expected --head letters, yes-no or loglik"
        )
    return draft.scored
