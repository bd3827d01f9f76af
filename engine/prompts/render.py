"""Turns questions into Prompts: text, tokens and targets of every scored branch. Knows nothing of models.

Each branch is tokenized as one text, prompt and label (or option) together. Targets are the tokens that
hold any character of the label, or of the option for head loglik; one that straddles the boundary counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from strata.engine.prompts.drafts import Draft, DraftWriter
from strata.engine.prompts.templates import DEFAULT_TEMPLATES, Template
from strata.engine.prompts.tokenizer import JointTokenizer
from strata.engine.prompts.truncation import FittedQuestion, TokenizedDraft, fit_questions
from strata.engine.types import Branch, InputError, Prompt, Question, RunWarnings, Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Questions rendered and tokenized together: enough to feed every core, few enough to hold all their spans.
_BATCH_QUESTIONS = 16


def render_prompts(
    questions: Sequence[Question],
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    head: str,
    debias: str = "none",
    max_tokens: int | None,
    window: int | None,
    warnings: RunWarnings,
    source: str = "the question file",
) -> list[Prompt]:
    """Renders and tokenizes all questions.

    Branches of a question, in order: binary, contrast and loglik one an option; yes-no two an option (yes,
    then no); letters one a letter, with rotations one a letter for each cyclic order. Where max_tokens or
    the window asks for it, the context is shortened from its end, the same for all branches of a question,
    and nothing else is.

    Args:
        questions: what `read_questions` gave.
        tokenizer: a fast tokenizer; its special tokens are added, but none at the end.
        template: from `load_template` for this head.
        head: binary, contrast, yes-no, letters or loglik.
        debias: "rotate" gives head letters all cyclic orders; other heads show one option at a time and
            have no use for it (a warning says so). "none" otherwise.
        max_tokens: the user's bound on the tokens of a branch, its last predicted token included; None for
            none.
        window: the bound of the model; None for none.
        warnings: where "longer than the window" and "longer than --max-tokens" go: questions too long even
            without context, which are scored whole.
        source: the name of the question file, for messages.

    Returns:
        One Prompt a question, in order. A branch's `token_ids` end before its last target. Its `text` is
        complete: tokenized, it begins with `token_ids` and the last target (and goes on where a loglik
        template does).

    Raises:
        InputError: a label that becomes no token or unknown tokens only, labels that become the same
            tokens, or a template that does not fit the head.
    """
    if head not in DEFAULT_TEMPLATES:
        raise InputError(f"--head {head!r}: expected {', '.join(DEFAULT_TEMPLATES)}")
    _check_settings(head, debias, max_tokens, window, warnings)
    writer = DraftWriter(template, head=head, rotates=debias == "rotate")
    joint_tokenizer = JointTokenizer(tokenizer)
    if not writer.uses_context and any(question.context for question in questions):
        warnings.say(f"template {template.name} does not show the contexts that the questions have")
    limit_tokens = min((bound for bound in (max_tokens, window) if bound is not None), default=None)
    prompts: list[Prompt] = []
    for first in range(0, len(questions), _BATCH_QUESTIONS):
        batch = questions[first : first + _BATCH_QUESTIONS]
        fitted = fit_questions(batch, writer=writer, tokenizer=joint_tokenizer, limit_tokens=limit_tokens)
        for one in fitted:
            _report_length(one, max_tokens, window, source, warnings)
            prompts.append(_build_prompt(one, joint_tokenizer.unknown_id, warnings))
    return prompts


def _check_settings(
    head: str, debias: str, max_tokens: int | None, window: int | None, warnings: RunWarnings
) -> None:
    if debias not in ("none", "rotate"):
        raise InputError(f"--debias {debias!r}: expected none or rotate")
    if debias == "rotate" and head != "letters":
        warnings.say(f"--debias rotate has no effect on head {head}, which does not number the options")
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"--max-tokens {max_tokens}: expected at least 1")
    if max_tokens is not None and window is not None and max_tokens > window:
        warnings.say(
            f"--max-tokens {max_tokens} exceeds the model's window of {window} tokens, which is used"
        )


def _report_length(
    one: FittedQuestion, max_tokens: int | None, window: int | None, source: str, warnings: RunWarnings
) -> None:
    num_tokens = one.longest_tokens
    for kind, bound in (("longer than the window", window), ("longer than --max-tokens", max_tokens)):
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
