"""Shortens contexts, and nothing else, until a question's longest branch fits a number of tokens.

The context is measured once, in place, inside the question's longest text: one tokenization tells how many
tokens are too many and at which characters its tokens end. Then all branches are written with the shortened
context and tokenized, once, and again only for questions where the seam or another branch took more tokens
than foreseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from strata.engine.heads.head import Draft
from strata.engine.prompts.continuations import EncodedPair, encode_pairs
from strata.engine.prompts.drafts import CONTEXT_MARKER, DraftWriter, find_marked
from strata.engine.prompts.tokenizer import JointTokenizer, Tokens
from strata.engine.types import Question


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedDraft:
    """A draft, its tokens, and `target_indices`: those of the target tokens (none for a classifier head)."""

    draft: Draft
    tokens: Tokens
    target_indices: range

    @property
    def num_tokens(self) -> int:
        """Tokens up to the last one that matters, a predicted one included."""
        return self.target_indices[-1] + 1 if self.target_indices else len(self.tokens)


@dataclass(kw_only=True)
class FittedQuestion:
    """A question with its tokenized drafts, fitted to a limit as far as its context allowed.

    `context` is what was left of the question's own; `cuts` [C + 1] holds the characters of it that its first
    0, 1, ..., C tokens take up (None: not measured).
    """

    question: Question
    context: str
    cuts: np.ndarray | None = None
    drafts: list[TokenizedDraft] | None = None

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest draft."""
        assert self.drafts is not None
        return max(tokenized.num_tokens for tokenized in self.drafts)

    @property
    def num_kept_tokens(self) -> int:
        """Tokens of the context that is left."""
        assert self.cuts is not None
        # The parts of a character share a cut: none of them is kept before the last is.
        index = min(int(np.searchsorted(self.cuts, len(self.context))), len(self.cuts) - 1)
        return index if self.cuts[index] <= len(self.context) else index - 1

    @property
    def num_truncated_tokens(self) -> int:
        """Tokens of the context that were cut off."""
        return 0 if self.cuts is None else len(self.cuts) - 1 - self.num_kept_tokens

    def keep_context_tokens(self, num_tokens: int) -> None:
        """Shortens the context to its first tokens, without white space at the end."""
        assert self.cuts is not None
        self.context = self.question.context[: self.cuts[max(num_tokens, 0)]].rstrip()


def fit_questions(
    questions: Sequence[Question], *, writer: DraftWriter, tokenizer: JointTokenizer, limit_tokens: int | None
) -> list[FittedQuestion]:
    """Writes and tokenizes all branches of some questions, with contexts that let them fit.

    The branches of a question share one context. Where even none is too long, `longest_tokens` says so.

    Args:
        questions: a batch; all their tokens are in memory at once.
        writer: writes the branches' texts.
        tokenizer: tokenizes them.
        limit_tokens: what the longest branch may take, its last predicted token included; None sets no limit.

    Raises:
        InputError: the template cannot be rendered.
    """
    fitted = [FittedQuestion(question=question, context=question.context) for question in questions]
    if limit_tokens is not None:
        _shorten_by_measure(fitted, writer, tokenizer, limit_tokens)
    pending = fitted
    while pending:
        _tokenize_drafts(pending, writer, tokenizer)
        pending = [one for one in pending if _shorten_more(one, limit_tokens)]
    return fitted


def _shorten_by_measure(
    fitted: Sequence[FittedQuestion], writer: DraftWriter, tokenizer: JointTokenizer, limit_tokens: int
) -> None:
    with_context = [one for one in fitted if one.context and writer.uses_context]
    probes = [_longest_draft(writer.write(one.question, one.context)) for one in with_context]
    measured = tokenizer.encode([probe.text for _, probe in probes])
    for one, (index, probe), tokens in zip(with_context, probes, measured, strict=True):
        marked = writer.write(one.question, CONTEXT_MARKER)[index].text
        one.cuts = _measure_context(one.context, probe.text, marked, tokens, tokenizer)
        excess = _find_targets(probe, tokens).num_tokens - limit_tokens
        if excess > 0:
            # A template may show the context more than once.
            num_dropped = -(-excess // max(marked.count(CONTEXT_MARKER), 1))
            one.keep_context_tokens(len(one.cuts) - 1 - num_dropped)


def _longest_draft(drafts: Sequence[Draft]) -> tuple[int, Draft]:
    return max(enumerate(drafts), key=lambda numbered: len(numbered[1].text))


def _measure_context(
    context: str, text: str, marked: str, tokens: Tokens, tokenizer: JointTokenizer
) -> np.ndarray:
    span = find_marked(text, marked, CONTEXT_MARKER, context)
    if span is None:
        # The template does not show the context as it is: measured alone, which may take a second cut.
        text, span, tokens = context, (0, len(context)), tokenizer.encode([context])[0]
    # A filter such as trim may have left out some of the context's first characters.
    offset = max(context.find(text[slice(*span)]), 0) - span[0]
    inside = tokens.overlapping(*span)
    ends = tokens.ends[inside.start : inside.stop]
    next_starts = np.append(tokens.starts[inside.start + 1 : inside.stop], span[1])
    # Where the next token starts before this one ends, both are parts of one character: cut before it.
    cuts = np.maximum.accumulate(np.minimum(ends, next_starts)) + offset
    return np.clip(np.concatenate([[0], cuts]), 0, len(context))


def _tokenize_drafts(
    fitted: Sequence[FittedQuestion], writer: DraftWriter, tokenizer: JointTokenizer
) -> None:
    drafts = [writer.write(one.question, one.context) for one in fitted]
    tokenized = iter(_tokenize([draft for group in drafts for draft in group], tokenizer))
    for one, group in zip(fitted, drafts, strict=True):
        one.drafts = [next(tokenized) for _ in group]


def _tokenize(drafts: Sequence[Draft], tokenizer: JointTokenizer) -> list[TokenizedDraft]:
    """The drafts, in order; those that score a continuation by the rule for pairs."""
    spans = [(draft.text, draft.scored[0]) for draft in drafts if draft.is_continuation and draft.scored]
    pairs = iter(encode_pairs(spans, tokenizer))
    wholes = iter(tokenizer.encode([draft.text for draft in drafts if not draft.is_continuation]))
    return [
        _find_continuation(draft, next(pairs))
        if draft.is_continuation
        else _find_targets(draft, next(wholes))
        for draft in drafts
    ]


def _find_targets(draft: Draft, tokens: Tokens) -> TokenizedDraft:
    span = draft.scored or (0, 0)
    target_indices = tokens.overlapping(*span) if span[0] < span[1] else range(0)
    return TokenizedDraft(draft=draft, tokens=tokens, target_indices=target_indices)


def _find_continuation(draft: Draft, pair: EncodedPair) -> TokenizedDraft:
    found = _find_targets(draft, pair.tokens)
    target_indices = range(pair.num_prefix, max(found.target_indices.stop, pair.num_prefix))
    return replace(found, target_indices=target_indices if found.target_indices else range(0))


def _shorten_more(one: FittedQuestion, limit_tokens: int | None) -> bool:
    """Shortens the context once more where a branch is still too long; False when there is nothing to do."""
    if limit_tokens is None or one.cuts is None or not one.context:
        return False
    excess = one.longest_tokens - limit_tokens
    if excess <= 0:
        return False
    one.keep_context_tokens(one.num_kept_tokens - excess)
    return True
