"""Cuts pages into chunks: sentences of one section merged up to a number of characters or tokens.

Nothing is lost: the chunks of a page hold its text, white space aside. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from strata.retrieval.types import Chunk, Page

Measure = Callable[[Sequence[str]], Sequence[int]]
"""The lengths of texts, in whatever unit chunks are limited in."""

# A run of marks is tried from its first only: tried from each, a run of n takes n * n looks.
SENTENCE_END = re.compile(
    r"""(?P<mark>(?<![.!?\u2026])[.!?\u2026]+["'\u201d\u2019)\]]*)\s+   # Latin: white space has to follow
      | [\u3002\uff01\uff1f\uff61\u0964]["'\u201d\u2019\u300d\u300f\uff09]*\s*   # CJK and Devanagari: not so
    """,
    re.VERBOSE,
)
LAST_WORD = re.compile(r"[^\s(\[\"']+$")
# fmt: off
ABBREVIATIONS = frozenset((
    "al", "approx", "art", "c", "ca", "cf", "ch", "co", "col", "corp", "dept", "dr", "ed", "eds", "eq",
    "etc", "ex", "fig", "figs", "gen", "gov", "inc", "jr", "lt", "ltd", "mr", "mrs", "ms", "mt", "nos",
    "p", "pp", "prof", "ref", "resp", "rev", "sec", "sen", "sr", "st", "vol", "vols", "vs", "e.g",
    "i.e", "u.s", "u.k", "a.m", "p.m", "a.d", "b.c", "ph.d",
))
# fmt: on
LONGEST_ABBREVIATION = 12
PARTS_PER_BLOCK = 10_000


@dataclass(frozen=True, kw_only=True)
class ChunkLimit:
    """How long a chunk's text may be: `max_length` in the unit of `measure`; `gap` is what a joint adds."""

    max_length: int
    measure: Measure
    gap: int = 0

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"a chunk of {self.max_length} holds nothing; expected a limit of 1 or more")


def limit_characters(max_chars: int) -> ChunkLimit:
    """Chunks of at most `max_chars` characters."""
    return ChunkLimit(max_length=max_chars, measure=lambda texts: [len(text) for text in texts], gap=1)


def limit_tokens(max_tokens: int, count_tokens: Measure) -> ChunkLimit:
    """Chunks of at most `max_tokens` tokens, as `count_tokens` counts each chunk's text alone.

    A single character that takes more tokens than that stays whole.
    """
    return ChunkLimit(max_length=max_tokens, measure=count_tokens)


def chunk_page(page: Page, limit: ChunkLimit) -> Iterator[Chunk]:
    """Yields a page's chunks in reading order; none when it has no text. No chunk spans two sections."""
    number = 0
    for section, text in page.sections or (("", page.text),):
        for piece in merge_parts(_sentences(text), limit):
            yield Chunk(id=f"{page.id}#{number}", page=page.id, title=page.title, section=section, text=piece)
            number += 1


def searchable_text(chunk: Chunk) -> str:
    """What search engines and encoders see of a chunk: its title, a line break, its text."""
    return f"{chunk.title}\n{chunk.text}" if chunk.title else chunk.text


def split_sentences(text: str) -> list[str]:
    """Cuts a text into sentences without white space around them; a line break always ends one."""
    return list(_sentences(text))


def _sentences(text: str) -> Iterator[str]:
    return (sentence for line in text.splitlines() for sentence in _sentences_of(line))


def _sentences_of(line: str) -> Iterator[str]:
    start = 0
    for end in SENTENCE_END.finditer(line):
        if not end["mark"] or _ends_sentence(line, start, end):
            yield from _stripped(line[start : end.end()])
            start = end.end()
    yield from _stripped(line[start:])


def _stripped(text: str) -> Iterator[str]:
    if text := text.strip():
        yield text


def _ends_sentence(line: str, start: int, end: re.Match[str]) -> bool:
    """False inside "e.g. this", after "Dr." or an initial, and before a lower-case letter."""
    if line[end.end() : end.end() + 1].islower():
        return False
    if end["mark"] != ".":
        return True
    before = LAST_WORD.search(line[max(start, end.start() - LONGEST_ABBREVIATION) : end.start()])
    word = before.group() if before else ""
    is_initial = len(word) == 1 and word.isupper()
    return not is_initial and word.lower() not in ABBREVIATIONS


def merge_parts(parts: Iterable[str], limit: ChunkLimit) -> Iterator[str]:
    """Joins neighbouring parts by a space as long as the whole fits; cuts a part that alone is too long.

    Peak memory: PARTS_PER_BLOCK parts, or the words of the longest one.

    Args:
        parts: texts in reading order, e.g. sentences.
        limit: the longest a result may be.

    Yields:
        Texts within the limit, in reading order.
    """
    rest = iter(parts)
    open_group: list[str] = []
    while block := list(islice(rest, PARTS_PER_BLOCK)):
        *groups, open_group = _group([*open_group, *_cut_long(block, limit)], limit)
        yield from _join(groups, limit)
    yield from _join([open_group] if open_group else [], limit)


def _cut_long(parts: Sequence[str], limit: ChunkLimit) -> Iterator[str]:
    for part, length in zip(parts, limit.measure(parts), strict=True):
        yield from (part,) if length <= limit.max_length else _cut_to_fit(part, limit)


def _join(groups: list[list[str]], limit: ChunkLimit) -> Iterator[str]:
    joined = [" ".join(group) for group in groups]
    lengths = limit.measure(joined) if joined else []
    for group, whole, length in zip(groups, joined, lengths, strict=True):
        yield from (whole,) if length <= limit.max_length or len(group) == 1 else _halve(group, limit)


def _group(parts: list[str], limit: ChunkLimit) -> list[list[str]]:
    """Greedy: each group takes the next part while the sum of lengths and gaps allows it."""
    groups: list[list[str]] = []
    total = 0
    for part, length in zip(parts, limit.measure(parts) if parts else (), strict=True):
        if groups and total + limit.gap + length <= limit.max_length:
            groups[-1].append(part)
            total += limit.gap + length
        else:
            groups.append([part])
            total = length
    return groups


def _halve(group: list[str], limit: ChunkLimit) -> Iterator[str]:
    """For token counts that do not add up: merges each half of a group that turned out too long."""
    middle = len(group) // 2
    yield from merge_parts(group[:middle], limit)
    yield from merge_parts(group[middle:], limit)


def _cut_to_fit(part: str, limit: ChunkLimit) -> Iterator[str]:
    """The part itself, or its words merged again, or a long word's halves."""
    if limit.measure([part])[0] <= limit.max_length or len(part) == 1:
        yield part
        return
    words = part.split()
    if len(words) > 1:
        yield from merge_parts(words, limit)
        return
    middle = len(part) // 2
    yield from _cut_to_fit(part[:middle], limit)
    yield from _cut_to_fit(part[middle:], limit)
