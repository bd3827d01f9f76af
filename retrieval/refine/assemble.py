"""Puts hits together into a context under a token budget: best first, title and text, chunks kept whole.

Knows nothing of where hits come from, and of a tokenizer only how many tokens a text has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strata.retrieval.types import Chunk, Hit

CountTokens = Callable[[str], int]

PIECE_GAP = "\n\n"
"""Between chunks of different titles; those that follow one another under one title get a line break."""

MAX_MERGED_TOKENS = 8
"""How many tokens fewer a joined text may have than its pieces, for a piece to be tried."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """A context: its text, its length in tokens, the ids of its chunks in order.

    `is_cut` says that not even one chunk fit whole, so that the best one was cut at a word.
    """

    text: str
    num_tokens: int
    chunk_ids: tuple[str, ...]
    is_cut: bool = False


EMPTY_CONTEXT = Context(text="", num_tokens=0, chunk_ids=())


def assemble_context(
    hits: Sequence[Hit], budget_tokens: int, count_tokens: CountTokens, max_chunks: int | None = None
) -> Context:
    """Takes hits from the best on, each whole, as long as the context stays within the budget.

    A chunk that does not fit any more is left out and the next one tried. A chunk whose text is in one taken
    before (letter case and white space aside) is left out as well, and so is one of no text.

    Args:
        hits: best first.
        budget_tokens: the most tokens the context may have.
        count_tokens: counts a text's tokens as the reader's tokenizer does; it sees the joined text, since
            tokens of pieces need not add up.
        max_chunks: the most chunks; None for as many as fit.

    Returns:
        A context of at most `budget_tokens` tokens; empty when there is nothing to take.

    Raises:
        ValueError: a budget or number of chunks below 1.
    """
    for name, value in (("budget_tokens", budget_tokens), ("max_chunks", max_chunks)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")
    candidates = drop_repeats([hit.chunk for hit in hits])
    taken: list[Chunk] = []
    num_tokens = 0
    for chunk in candidates:
        if max_chunks is not None and len(taken) == max_chunks:
            break
        # Spares counting the whole for chunks that are far too long: joints merge a few tokens at most.
        if num_tokens + count_tokens(chunk.text) > budget_tokens + MAX_MERGED_TOKENS:
            continue
        length = count_tokens(join_chunks([*taken, chunk]))
        if length <= budget_tokens:
            taken.append(chunk)
            num_tokens = length
    if candidates and not taken:
        return _cut(candidates[0], budget_tokens, count_tokens)
    return Context(
        text=join_chunks(taken), num_tokens=num_tokens, chunk_ids=tuple(chunk.id for chunk in taken)
    )


def join_chunks(chunks: Sequence[Chunk]) -> str:
    """Titles and texts; a title is not repeated where the chunk before has the same one."""
    text, title = "", None
    for chunk in chunks:
        if title is not None and chunk.title == title:
            text += f"\n{chunk.text}"
        else:
            heading = f"{chunk.title}\n" if chunk.title else ""
            text += f"{PIECE_GAP if text else ''}{heading}{chunk.text}"
        title = chunk.title
    return text


def drop_repeats(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Chunks without those of no text and those whose text lies within an earlier one's."""
    kept: list[Chunk] = []
    seen: list[str] = []
    for chunk in chunks:
        text = " ".join(chunk.text.casefold().split())
        if text and not any(text in earlier for earlier in seen):
            kept.append(chunk)
            seen.append(text)
    return kept


def deal_hits(hits: Sequence[Hit], num_contexts: int) -> list[list[Hit]]:
    """Deals the hits of one query to contexts that share no chunk, as cards are dealt: each gets a best one.

    Args:
        hits: best first.
        num_contexts: how many contexts.

    Returns:
        [num_contexts] hits, best first.
    """
    chunks = {chunk.id for chunk in drop_repeats([hit.chunk for hit in hits])}
    distinct = list({hit.chunk.id: hit for hit in hits if hit.chunk.id in chunks}.values())
    return [distinct[number::num_contexts] for number in range(num_contexts)]


def _cut(chunk: Chunk, budget_tokens: int, count_tokens: CountTokens) -> Context:
    """As many words of the chunk as fit, by bisection."""
    whole = join_chunks([chunk])
    ends = [0, *(word.end() for word in re.finditer(r"\S+", whole))]
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = count_tokens(whole[: ends[middle]]) <= budget_tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    text = whole[: ends[low]]
    if not text:
        return EMPTY_CONTEXT
    return Context(text=text, num_tokens=count_tokens(text), chunk_ids=(chunk.id,), is_cut=True)
