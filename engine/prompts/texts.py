"""Turns texts to classify into Prompts: one branch each, as the tokenizer makes it. Knows no models.

A text (or a pair) becomes what `tokenizer(text)` (or `tokenizer(text, second)`) gives, special tokens at its
end included, and is cut as that cuts, `truncation=True`: the longer of a pair loses tokens first. It is read
at its last token that is not padding, and no token after that one is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from strata.engine.heads.head import Draft
from strata.engine.prompts.drafts import DraftWriter
from strata.engine.prompts.layouts import PlainLayout
from strata.engine.prompts.render import PromptSettings, warn_of_settings
from strata.engine.types import Branch, InputError, Prompt, Question, RunWarnings, Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokenized together: bounds the memory of the tokenizer's own bookkeeping, and feeds every core.
_BATCH_TEXTS = 256
_UNBOUNDED = 10**9


def render_texts(
    questions: Sequence[Question],
    settings: PromptSettings,
    tokenizer: PreTrainedTokenizerBase,
    warnings: RunWarnings,
    *,
    pad_token_id: int | None,
    source: str = "the question file",
) -> list[Prompt]:
    """Renders and tokenizes texts for head classify.

    Args:
        questions: texts; where any has a context that the template does not show, all are pairs.
        settings: head, template and bounds.
        tokenizer: its special tokens are added as it does by itself.
        warnings: where settings without effect go, and texts that were cut.
        pad_token_id: of the model's config: a token that a text is never read at.
        source: the name of the file, for messages.

    Raises:
        InputError: a text that becomes no token, or a template that does not fit.
    """
    writer = DraftWriter(settings.template, head=settings.head, layout=PlainLayout())
    warn_of_settings(settings, warnings)
    pairs = not writer.uses_context and any(question.context for question in questions)
    prompts: list[Prompt] = []
    for first in range(0, len(questions), _BATCH_TEXTS):
        batch = questions[first : first + _BATCH_TEXTS]
        drafts = [draft for question in batch for draft in writer.write(question, question.context)]
        whole = _tokenize(drafts, tokenizer, None, pairs=pairs)
        kept = _cut_long(drafts, whole, tokenizer, settings.limit_tokens, pairs=pairs)
        for question, draft, ids, num_whole in zip(batch, drafts, kept, map(len, whole), strict=True):
            where = f"{source}, row {question.row}"
            if num_whole > len(ids):
                what = f"{num_whole} tokens, expected at most {settings.limit_tokens}"
                warnings.odd_row("text cut", question.id, f"{where}: {what}")
            branch = _build_branch(draft, ids, pad_token_id, where)
            num_cut = num_whole - len(ids)
            prompts.append(Prompt(question=question, branches=(branch,), num_truncated_tokens=num_cut))
    return prompts


def check_known_labels(questions: Sequence[Question], labels: Sequence[str], source: str) -> None:
    """Raises InputError where a question may get a label that the classifier does not have."""
    known = frozenset(labels)
    for question in questions:
        unknown = next((name for name in question.options if name not in known), None)
        if unknown is not None:
            shown = ", ".join(map(repr, labels[:3])) + (", ..." if len(labels) > 3 else "")
            raise InputError(
                f"{source}, row {question.row}: option {unknown!r} is no label of the classifier; "
                f"expected one of its {len(labels)}: {shown}"
            )


def pooled_position(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Index of the last token that is not padding; 0 where all are, as an argmax has it."""
    return next((place for place in range(len(ids) - 1, -1, -1) if ids[place] != pad_token_id), 0)


def _cut_long(
    drafts: Sequence[Draft],
    whole: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    limit_tokens: int | None,
    *,
    pairs: bool,
) -> list[list[int]]:
    """Token ids of every text, those of too many tokens cut to the limit."""
    kept = list(whole)
    if limit_tokens is None:
        return kept
    long = [place for place, ids in enumerate(whole) if len(ids) > limit_tokens]
    if long:
        shorter = _tokenize([drafts[place] for place in long], tokenizer, limit_tokens, pairs=pairs)
        for place, ids in zip(long, shorter, strict=True):
            kept[place] = ids
    return kept


def _tokenize(
    drafts: Sequence[Draft], tokenizer: PreTrainedTokenizerBase, limit_tokens: int | None, *, pairs: bool
) -> list[list[int]]:
    encoded = tokenizer(
        [draft.text for draft in drafts],
        [draft.second or "" for draft in drafts] if pairs else None,
        truncation=limit_tokens is not None,
        # Without a bound of ours, none: the tokenizer's own would only make it say so.
        max_length=_UNBOUNDED if limit_tokens is None else limit_tokens,
        padding=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _build_branch(draft: Draft, ids: Sequence[int], pad_token_id: int | None, where: str) -> Branch:
    if not ids:
        raise InputError(f"{where}: the text becomes no token; expected at least one")
    position = pooled_position(ids, pad_token_id)
    return Branch(
        option=draft.option,
        order=draft.order,
        label=draft.label,
        token_ids=np.array(ids[: position + 1], np.int32),
        text=f"{draft.text}\n{draft.second}" if draft.second else draft.text,
        targets=(Target(position=position, token_id=None),),
    )
