"""Turns questions into Prompts: text, tokens and targets of every scored branch. Knows nothing of models.

Each branch is tokenized as one text, prompt and label (or option) together. Targets are the tokens that
hold any character of what the head scores, a label or the option; one that straddles the boundary counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from strata.engine.heads.debiasing.debias import Debias, stated_orders
from strata.engine.heads.debiasing.permute import Stated
from strata.engine.heads.head import Draft, Head
from strata.engine.prompts.drafts import DraftWriter
from strata.engine.prompts.layouts import ChatLayout, Layout, PlainLayout
from strata.engine.prompts.lost_options import report_lost_options
from strata.engine.prompts.templates import Template
from strata.engine.prompts.tokenizer import JointTokenizer
from strata.engine.prompts.truncation import FittedQuestion, TokenizedDraft, fit_questions
from strata.engine.types import Branch, InputError, Prompt, Question, RunWarnings, Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Questions rendered and tokenized together: enough to feed every core, few enough to hold all their spans.
_BATCH_QUESTIONS = 16


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How questions become prompts.

    Attributes:
        template: from `load_template` for this head.
        head: what scores the options; it says which branches there are.
        debias: which orders the options are shown in (a warning tells where that has no effect on the head),
            and whether they see each other.
        max_tokens: the user's bound on the tokens of a branch, its last predicted token included; None for
            none.
        window: the bound of the model; None for none.
        chat: prompts are conversations in the tokenizer's chat template, or in the template's own `frame`.
        system: their system message; None leaves it to the chat template.
        shots: answered questions that are shown before each question, the first `num_shots` (None: all) that
            are not the question itself. They are never shortened.
        num_shots: see `shots`.

    Raises:
        InputError: a way to debias that the head cannot be asked in, a bound below 1, a system message
            outside of a chat, or a chat or examples for a head that reads texts.
    """

    template: Template
    head: Head
    debias: Debias = field(default_factory=Stated)
    max_tokens: int | None = None
    window: int | None = None
    chat: bool = False
    system: str | None = None
    shots: tuple[Question, ...] = ()
    num_shots: int | None = None

    def __post_init__(self) -> None:
        self.debias.suits(self.head)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"--max-tokens {self.max_tokens}: expected at least 1")
        if self.system is not None and not self.chat:
            raise InputError(f"--system {self.system!r}: expected --chat with it")
        for flag, given in (("--chat", self.chat), ("--shots", bool(self.shots))):
            if given and self.head.needs == "prompt":
                raise InputError(
                    f"{flag}: head {self.head.name} reads a text as it is; expected a run without it"
                )

    @property
    def limit_tokens(self) -> int | None:
        """The tighter of the two bounds."""
        return min((bound for bound in (self.max_tokens, self.window) if bound is not None), default=None)


def render_prompts(
    questions: Sequence[Question],
    settings: PromptSettings,
    tokenizer: PreTrainedTokenizerBase,
    warnings: RunWarnings,
    *,
    source: str = "the question file",
) -> list[Prompt]:
    """Renders and tokenizes all questions.

    Where a bound asks for it, the context is shortened from its end, the same for all branches of a question,
    and nothing else is.

    Args:
        questions: what `read_questions` gave.
        settings: head, template and bounds.
        tokenizer: a fast tokenizer; its special tokens are added, but none at the end.
        warnings: where settings without effect go, and "longer than the window" and "longer than
            --max-tokens": questions too long even without context, which are scored whole; "option of
            unknown tokens only" and "option of no tokens".
        source: the name of the question file, for messages.

    Returns:
        One Prompt a question, in order, with the branches that the head drafts. A branch's `token_ids` end
        before its last target. Its `text` is complete: tokenized, it begins with `token_ids` and the last
        target (and goes on where a template does after the option). A text that brings the tokenizer's BOS
        token has it once, where the tokenizer alone would make two. Options that do not see each other are
        tokenized apart, and in `token_ids` stand in an order of their own.

    Raises:
        InputError: a label that becomes no token or unknown tokens only, labels that become the same
            tokens, or a template that does not fit the head.
    """
    writer = DraftWriter(
        settings.template,
        head=settings.head,
        masks_options=settings.debias.masks_options,
        layout=_choose_layout(settings, tokenizer),
        shots=settings.shots,
        num_shots=settings.num_shots,
    )
    joint_tokenizer = JointTokenizer(tokenizer, add_special_tokens=not settings.chat)
    warn_of_settings(settings, warnings)
    if not writer.uses_context and any(question.context for question in questions):
        warnings.say(f"template {settings.template.name} does not show the contexts that the questions have")
    prompts = []
    for one in _fit_all(questions, settings, writer, joint_tokenizer):
        _report_length(one, settings, source, warnings)
        report_lost_options(one, joint_tokenizer.unknown_id, source, warnings)
        prompts.append(_build_prompt(one, joint_tokenizer.unknown_id, warnings))
    _warn_of_starts(settings, joint_tokenizer, warnings)
    return prompts


def _fit_all(
    questions: Sequence[Question], settings: PromptSettings, writer: DraftWriter, tokenizer: JointTokenizer
) -> Iterator[FittedQuestion]:
    """The questions in their orders, tokenized and fitted batch by batch."""
    planned = settings.debias.plan_orders if settings.debias.suits(settings.head) else stated_orders
    orders = planned(questions)
    for first in range(0, len(questions), _BATCH_QUESTIONS):
        batch = slice(first, first + _BATCH_QUESTIONS)
        yield from fit_questions(
            questions[batch],
            orders[batch],
            writer=writer,
            tokenizer=tokenizer,
            limit_tokens=settings.limit_tokens,
        )


def _warn_of_starts(settings: PromptSettings, tokenizer: JointTokenizer, warnings: RunWarnings) -> None:
    name = settings.template.name
    if tokenizer.has_brought_start:
        warnings.say(f"template {name}: it brings the tokenizer's BOS token, which is not added again")
    if tokenizer.has_repeated_start:
        warnings.say(
            f"template {name}: the tokenizer's BOS token stands in prompts more than once, "
            "in the template or in a question's text"
        )


def _choose_layout(settings: PromptSettings, tokenizer: PreTrainedTokenizerBase) -> Layout:
    if not settings.chat:
        return PlainLayout()
    return ChatLayout(tokenizer, system=settings.system, chat_template=settings.template.frame)


def warn_of_settings(settings: PromptSettings, warnings: RunWarnings) -> None:
    """Says which of the user's settings have no effect."""
    head, max_tokens, window = settings.head, settings.max_tokens, settings.window
    if not settings.debias.suits(head):
        name = settings.debias.name
        warnings.say(f"--debias {name} has no effect on head {head.name}, which does not number the options")
    if max_tokens is not None and window is not None and max_tokens > window:
        warnings.say(
            f"--max-tokens {max_tokens} exceeds the model's window of {window} tokens, which is used"
        )


def _report_length(one: FittedQuestion, settings: PromptSettings, source: str, warnings: RunWarnings) -> None:
    num_tokens = one.longest_tokens
    bounds = {"longer than the window": settings.window, "longer than --max-tokens": settings.max_tokens}
    for kind, bound in bounds.items():
        if bound is not None and num_tokens > bound:
            place = f"{source}, row {one.question.row}"
            excess = f"{num_tokens} tokens without context, expected at most {bound}"
            warnings.odd_row(kind, one.question.id, f"{place}: {excess}")
            return


def _build_prompt(one: FittedQuestion, unknown_id: int | None, warnings: RunWarnings) -> Prompt:
    assert one.drafts is not None
    _check_labels(one.drafts, unknown_id)
    branches = tuple(_build_branch(tokenized, warnings) for tokenized in one.drafts)
    return Prompt(question=one.question, branches=branches, num_truncated_tokens=one.num_truncated_tokens)


def _check_labels(drafts: Sequence[TokenizedDraft], unknown_id: int | None) -> None:
    labels_of_tokens: dict[tuple[object, ...], str] = {}
    for tokenized in drafts:
        draft = tokenized.draft
        if draft.label is None:
            continue
        targets = tuple(int(tokenized.tokens.ids[index]) for index in tokenized.target_indices)
        if not targets:
            raise InputError(
                f"label {draft.label!r}: the tokenizer makes no token of it, expected at least one"
            )
        if all(token_id == unknown_id for token_id in targets):
            raise InputError(f"label {draft.label!r}: the tokenizer makes only unknown tokens of it")
        if tokenized.target_indices[0] == 0:
            raise InputError(f"label {draft.label!r}: stands at the very start, expected text before it")
        place = (draft.order or draft.option, targets)
        other = labels_of_tokens.setdefault(place, draft.label)
        if other != draft.label:
            raise InputError(
                f"labels {other!r} and {draft.label!r}: the tokenizer makes the same tokens of both"
            )


def _build_branch(tokenized: TokenizedDraft, warnings: RunWarnings) -> Branch:
    draft, ids = tokenized.draft, tokenized.tokens.ids
    targets = _list_targets(tokenized, warnings)
    is_predicted = bool(targets) and targets[-1].token_id is not None
    return Branch(
        option=draft.option,
        order=draft.order,
        label=draft.label,
        token_ids=np.ascontiguousarray(ids[: targets[-1].position]) if is_predicted else ids,
        text=draft.text,
        targets=targets,
        siblings=tokenized.siblings,
    )


def _list_targets(tokenized: TokenizedDraft, warnings: RunWarnings) -> tuple[Target, ...]:
    draft, ids = tokenized.draft, tokenized.tokens.ids
    if draft.scored is None:
        _check_not_empty(draft, ids)
        return (Target(position=len(ids) - 1, token_id=None),)
    indices = tokenized.target_indices
    if indices and indices[0] == 0:
        # Without a token before it there is nothing to predict it from.
        warnings.say(
            "the first token of a prompt is part of an option and has no token before it: it is not scored"
        )
        indices = indices[1:]
    return tuple(Target(position=index, token_id=int(ids[index])) for index in indices)


def _check_not_empty(draft: Draft, ids: np.ndarray) -> None:
    if not len(ids):
        raise InputError(
            f"option {draft.option}: its prompt {draft.text!r} has no tokens, expected at least one"
        )
