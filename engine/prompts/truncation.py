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

from strata.engine.heads.debiasing.debias import Order
from strata.engine.heads.head import Draft
from strata.engine.prompts.continuations import EncodedPair, encode_pairs
from strata.engine.prompts.drafts import CONTEXT_MARKER, DraftWriter, find_marked
from strata.engine.prompts.siblings.sibling_tokens import SiblingTokens, put_siblings, without_siblings
from strata.engine.prompts.tokenizer import JointTokenizer, Tokens
from strata.engine.tree.intervals import Intervals
from strata.engine.types import InputError, Question


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedDraft:
    """A draft, its tokens, and `target_indices`: those of the target tokens (none for a classifier head)."""

    draft: Draft
    tokens: Tokens
    target_indices: range
    siblings: Intervals = ()

    @property
    def num_tokens(self) -> int:
        """Positions up to the last token that matters, a predicted one included."""
        num = self.target_indices[-1] + 1 if self.target_indices else len(self.tokens)
        lengths = [end - start for start, end in self.siblings]
        return num - sum(lengths) + max(lengths, default=0)


@dataclass(kw_only=True)
class FittedQuestion:
    """A question with its tokenized drafts, fitted to a limit as far as its context allowed.

    `orders` are those its options are shown in. `context` is what was left of the question's own; `cuts`
    [C + 1] holds the characters of it that its first 0, 1, ..., C tokens take up (None: not measured).
    """

    question: Question
    orders: tuple[Order, ...]
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
    questions: Sequence[Question],
    orders: Sequence[tuple[Order, ...]],
    *,
    writer: DraftWriter,
    tokenizer: JointTokenizer,
    limit_tokens: int | None,
) -> list[FittedQuestion]:
    """Writes and tokenizes all branches of some questions, with contexts that let them fit.

    The branches of a question share one context. Where even none is too long, `longest_tokens` says so.

    Args:
        questions: a batch; all their tokens are in memory at once.
        orders: for each question those its options are shown in.
        writer: writes the branches' texts.
        tokenizer: tokenizes them.
        limit_tokens: what the longest branch may take, its last predicted token included; None sets no limit.

    Raises:
        InputError: the template cannot be rendered.
    """
    fitted = [
        FittedQuestion(question=question, orders=shown, context=question.context)
        for question, shown in zip(questions, orders, strict=True)
    ]
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
    probes = [_longest_draft(writer.write(one.question, one.context, one.orders)) for one in with_context]
    measured = _measure_drafts([probe for _, probe in probes], tokenizer)
    for one, (index, probe), tokenized in zip(with_context, probes, measured, strict=True):
        marked = writer.write(one.question, CONTEXT_MARKER, one.orders)[index].text
        one.cuts = _measure_context(one.context, probe.text, marked, tokenized.tokens, tokenizer)
        excess = tokenized.num_tokens - limit_tokens
        if excess > 0:
            # A template may show the context more than once.
            num_dropped = -(-excess // max(marked.count(CONTEXT_MARKER), 1))
            one.keep_context_tokens(len(one.cuts) - 1 - num_dropped)


def _measure_drafts(drafts: Sequence[Draft], tokenizer: JointTokenizer) -> list[TokenizedDraft]:
    """The drafts as wholes, whose targets are told as far as their end goes."""
    if any(draft.siblings for draft in drafts):
        return _tokenize(drafts, tokenizer)
    wholes = tokenizer.encode([draft.text for draft in drafts])
    return [_find_targets(draft, tokens) for draft, tokens in zip(drafts, wholes, strict=True)]


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
    drafts = [writer.write(one.question, one.context, one.orders) for one in fitted]
    tokenized = iter(_tokenize([draft for group in drafts for draft in group], tokenizer))
    for one, group in zip(fitted, drafts, strict=True):
        one.drafts = [next(tokenized) for _ in group]


def _tokenize(drafts: Sequence[Draft], tokenizer: JointTokenizer) -> list[TokenizedDraft]:
    """The drafts, in order, with their siblings."""
    without = _tokenize_plain([without_siblings(draft) for draft in drafts], tokenizer)
    listing = [index for index, draft in enumerate(drafts) if draft.siblings]
    placed = put_siblings(
        [drafts[index] for index in listing], [without[index].tokens for index in listing], tokenizer
    )
    for index, found in zip(listing, placed, strict=True):
        without[index] = _with_siblings(drafts[index], without[index], found)
    return without


def _with_siblings(draft: Draft, without: TokenizedDraft, found: SiblingTokens) -> TokenizedDraft:
    """The targets behind the options, of which each needs a token behind them to be read from."""
    num_more = len(found.tokens) - len(without.tokens)
    first = without.target_indices.start if without.target_indices else len(without.tokens)
    if found.siblings and first <= found.siblings[0][0]:
        raise InputError(
            f"--debias set: nothing stands between the options and what is read (option {draft.option}); "
            "expected text between them"
        )
    targets = range(without.target_indices.start + num_more, without.target_indices.stop + num_more)
    return TokenizedDraft(
        draft=draft,
        tokens=found.tokens,
        target_indices=targets if without.target_indices else range(0),
        siblings=found.siblings,
    )


def _tokenize_plain(drafts: Sequence[Draft], tokenizer: JointTokenizer) -> list[TokenizedDraft]:
    """Drafts without siblings; those that score a continuation by the rule for pairs."""
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
