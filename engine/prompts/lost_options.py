"""Finds options that the tokenizer loses: it makes only unknown tokens of their text, or none at all.

A model cannot tell such options from each other. Knows nothing of models and templates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.engine.prompts.truncation import FittedQuestion, TokenizedDraft
from strata.engine.types import LETTERS, RunWarnings


def report_lost_options(
    fitted: FittedQuestion, unknown_id: int | None, source: str, warnings: RunWarnings
) -> None:
    """Records a question whose options are lost as an odd row, once a kind.

    Args:
        fitted: with its drafts tokenized; an option that they do not show as it is, is not looked at.
        unknown_id: the tokenizer's token of what it does not know, if it has one.
        source: the name of the question file.
        warnings: where "option of unknown tokens only" and "option of no tokens" go.

    Raises:
        InputError: there is one, and the run is strict.
    """
    assert fitted.drafts is not None
    drafts = {tokenized.draft.option: tokenized for tokenized in reversed(fitted.drafts)}
    told: set[str] = set()
    for option, tokenized in sorted(drafts.items()):
        kind = _find_loss(tokenized, fitted.question.options[option], unknown_id)
        if kind is not None and kind not in told:
            told.add(kind)
            place = f"{source}, row {fitted.question.row}, option {LETTERS[option]}"
            warnings.odd_row(kind, fitted.question.id, place)


def _find_loss(tokenized: TokenizedDraft, text: str, unknown_id: int | None) -> str | None:
    draft = tokenized.draft
    end = len(draft.text) if draft.label is None or draft.scored is None else draft.scored[0]
    start = draft.text.rfind(text, 0, end) if text else -1
    if start < 0:
        return None
    indices = tokenized.tokens.overlapping(start, start + len(text))
    return what_is_lost(tokenized.tokens.ids[indices.start : indices.stop], unknown_id)


def what_is_lost(ids: Sequence[int] | np.ndarray, unknown_id: int | None) -> str | None:
    """What kind of odd row an option of these tokens makes; None where a model can tell it apart."""
    if not len(ids):
        return "option of no tokens"
    return "option of unknown tokens only" if all(token_id == unknown_id for token_id in ids) else None
