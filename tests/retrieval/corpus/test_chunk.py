"""Chunks: nothing lost, nothing too long, sentences kept whole where they fit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.retrieval.corpus import chunk
from strata.retrieval.corpus.chunk import (
    SENTENCE_END,
    chunk_page,
    limit_characters,
    limit_tokens,
    merge_parts,
    searchable_text,
    split_sentences,
)
from strata.retrieval.types import Chunk, Page

PROSE = st.text(alphabet=st.sampled_from("abcXYZ .!?\n\u3002\u4f60\u00e9\"')1"), max_size=300)


def page(text: str, sections: tuple[tuple[str, str], ...] = ()) -> Page:
    return Page(id="p", title="T", text=text, sections=sections)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "stop." Then left.', ['He said "stop."', "Then left."]),
        (
            "Dr. Smith met J. R. Jones, e.g. at 3.5 km. Good.",
            ["Dr. Smith met J. R. Jones, e.g. at 3.5 km.", "Good."],
        ),
        ("version 2. and on", ["version 2. and on"]),
        ("first line\nsecond line", ["first line", "second line"]),
        ("\u4f60\u597d\u3002\u4e16\u754c\uff01", ["\u4f60\u597d\u3002", "\u4e16\u754c\uff01"]),
        (
            "\u041f\u0440\u0438\u0432\u0435\u0442. \u041c\u0438\u0440.",
            ["\u041f\u0440\u0438\u0432\u0435\u0442.", "\u041c\u0438\u0440."],
        ),
        ("  \n \t ", []),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(PROSE, st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_chunks_hold_the_whole_text_within_the_limit(text: str, max_chars: int) -> None:
    chunks = list(chunk_page(page(text), limit_characters(max_chars)))
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())
    assert all(0 < len(chunk.text) <= max_chars for chunk in chunks)
    assert [chunk.id for chunk in chunks] == [f"p#{number}" for number in range(len(chunks))]


@given(PROSE, st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_token_limit_holds_for_counts_that_do_not_add_up(text: str, max_tokens: int) -> None:
    def count(texts: list[str]) -> list[int]:
        # A joint costs a token, so the parts' counts are too small for the whole.
        return [len(text.replace(" ", "..")) for text in texts]

    chunks = list(chunk_page(page(text), limit_tokens(max_tokens, count)))
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())
    assert all(count([chunk.text])[0] <= max_tokens for chunk in chunks)


def test_sentences_are_merged_up_to_the_limit_and_no_further() -> None:
    text = "Aaaa aaaa. Bbbb bbbb. Cccc cccc."
    assert [chunk.text for chunk in chunk_page(page(text), limit_characters(21))] == [
        "Aaaa aaaa. Bbbb bbbb.",
        "Cccc cccc.",
    ]
    assert len(list(chunk_page(page(text), limit_characters(20)))) == 3
    assert len(list(chunk_page(page(text), limit_characters(32)))) == 1


def test_no_chunk_spans_sections_and_each_keeps_title_and_heading() -> None:
    chunks = list(chunk_page(page("ignored", (("", "Intro."), ("History", "Old."))), limit_characters(100)))
    assert [(chunk.title, chunk.section, chunk.text) for chunk in chunks] == [
        ("T", "", "Intro."),
        ("T", "History", "Old."),
    ]
    assert [chunk.id for chunk in chunks] == ["p#0", "p#1"]


def test_a_character_of_more_tokens_than_the_limit_stays_whole() -> None:
    limit = limit_tokens(2, lambda texts: [3 * len(text) for text in texts])
    assert list(merge_parts(["ab"], limit)) == ["a", "b"]


@given(PROSE, st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_parts_in_blocks_are_merged_as_all_at_once(text: str, max_chars: int, block: int) -> None:
    limit = limit_characters(max_chars)
    whole = list(chunk_page(page(text), limit))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk, "PARTS_PER_BLOCK", block)
        assert list(chunk_page(page(text), limit)) == whole


@given(st.text(alphabet=".!?\"' \n\u3002a", max_size=60))
@settings(max_examples=300, deadline=None)
def test_runs_of_marks_end_sentences_wherever_they_are_looked_at_from(text: str) -> None:
    """The check: the pattern that may begin at any mark of a run, which is slow and says the same."""
    slow = re.compile(SENTENCE_END.pattern.replace("(?<![.!?\\u2026])", ""), re.VERBOSE)
    assert slow.pattern != SENTENCE_END.pattern
    found = [[match.span() for match in pattern.finditer(text)] for pattern in (SENTENCE_END, slow)]
    assert found[0] == found[1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["." * (10 << 20), ".'" * (5 << 20), "\n" * (1 << 20), ". a" * (1 << 18)])
def test_ten_megabytes_of_marks_take_seconds(text: str) -> None:
    chunks = list(chunk_page(page(text), limit_characters(512)))
    assert sum(len("".join(chunk.text.split())) for chunk in chunks) == len("".join(text.split()))


def test_a_megabyte_without_a_space_is_cut() -> None:
    chunks = list(chunk_page(page("x" * (1 << 20)), limit_characters(512)))
    assert sum(len(chunk.text) for chunk in chunks) == 1 << 20
    assert max(len(chunk.text) for chunk in chunks) <= 512


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk of 0"):
        limit_characters(0)


@pytest.mark.parametrize(("title", "expected"), [("T", "T\nbody"), ("", "body")])
def test_searchable_text_holds_the_title(title: str, expected: str) -> None:
    assert searchable_text(Chunk(id="p#0", page="p", title=title, section="s", text="body")) == expected
