"""Tokens of drafts whose options do not see each other. Knows no template and no head.

Each option is tokenized behind what comes before the list, and so is what follows the list: no token depends
on which option stands before it. The options' tokens are put in ascending order, so that equal sets become
equal tokens; where each stood in the text, `Tokens.starts` and `ends` still say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from strata.engine.heads.head import Draft
from strata.engine.prompts.tokenizer import JointTokenizer, Tokens
from strata.engine.tree.intervals import Intervals
from strata.engine.types import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class SiblingTokens:
    """`tokens` of a whole draft, and the spans [start, end) of them that do not see each other."""

    tokens: Tokens
    siblings: Intervals


def without_siblings(draft: Draft) -> Draft:
    """The draft as if it listed no options."""
    if not draft.siblings:
        return draft
    start, end = draft.siblings[0][0], draft.siblings[-1][1]
    scored = None if draft.scored is None else (draft.scored[0] - end + start, draft.scored[1] - end + start)
    return replace(draft, text=draft.text[:start] + draft.text[end:], scored=scored, siblings=())


def put_siblings(
    drafts: Sequence[Draft], without: Sequence[Tokens], tokenizer: JointTokenizer
) -> list[SiblingTokens]:
    """Puts the tokens of options where they belong.

    Args:
        drafts: with siblings.
        without: the tokens of each draft without them.
        tokenizer: of the model.

    Raises:
        InputError: the tokenizer makes one token of an option's beginning and what stands before it.
    """
    openings = [draft.text[: draft.siblings[0][0]] for draft in drafts]
    texts = [
        before + draft.text[slice(*span)]
        for draft, before in zip(drafts, openings, strict=True)
        for span in draft.siblings
    ]
    distinct = list(dict.fromkeys([*openings, *texts]))
    encoded = dict(zip(distinct, tokenizer.encode(distinct), strict=True))
    return [_put(draft, tokens, encoded) for draft, tokens in zip(drafts, without, strict=True)]


def _put(draft: Draft, without: Tokens, encoded: dict[str, Tokens]) -> SiblingTokens:
    first, last = draft.siblings[0][0], draft.siblings[-1][1]
    before = encoded[draft.text[:first]]
    options = [
        _behind(encoded[draft.text[:first] + draft.text[start:end]], before, start - first)
        for start, end in draft.siblings
    ]
    options = sorted((tokens for tokens in options if len(tokens)), key=_in_order)
    parts = [before, *options, _behind(without, before, last - first)]
    ends = np.cumsum([len(part) for part in parts[:-1]]).tolist()
    return SiblingTokens(
        tokens=Tokens(
            ids=np.concatenate([part.ids for part in parts]),
            starts=np.concatenate([part.starts for part in parts]),
            ends=np.concatenate([part.ends for part in parts]),
        ),
        siblings=tuple(pairwise(ends)),
    )


def _behind(whole: Tokens, before: Tokens, moved: int) -> Tokens:
    """The tokens of a text behind those of its beginning, at characters further on by `moved`."""
    num = len(before)
    if not np.array_equal(whole.ids[:num], before.ids):
        raise InputError(
            "--debias set: the tokenizer makes one token of the end of the text before the list of options "
            "and of what follows; expected a template with a line feed between them"
        )
    return Tokens(ids=whole.ids[num:], starts=whole.starts[num:] + moved, ends=whole.ends[num:] + moved)


def _in_order(tokens: Tokens) -> bytes:
    return tokens.ids.astype(">i4").tobytes()
