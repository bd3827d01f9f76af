"""Contexts: never over the budget, chunks whole, best first, nothing twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.retrieval.refine.assemble import (
    EMPTY_CONTEXT,
    assemble_context,
    deal_hits,
    drop_repeats,
    join_chunks,
)
from strata.retrieval.types import Chunk, Hit


def hit(number: int, text: str, title: str = "") -> Hit:
    chunk = Chunk(id=f"p{number}#0", page=f"p{number}", title=title, section="", text=text)
    return Hit(chunk=chunk, score=-float(number), row=number)


def words(text: str) -> int:
    return len(text.split())


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.chunk.id for hit in hits]


def test_titles_and_texts_best_first() -> None:
    context = assemble_context([hit(0, "Cats purr.", "Cats"), hit(1, "Dogs bark.", "Dogs")], 100, words)
    assert context.text == "Cats\nCats purr.\n\nDogs\nDogs bark."
    assert (context.num_tokens, context.chunk_ids, context.is_cut) == (6, ("p0#0", "p1#0"), False)


def test_a_title_is_not_repeated_for_its_next_chunk() -> None:
    chunks = [
        found.chunk for found in (hit(0, "One.", "T"), hit(1, "Two.", "T"), hit(2, "Three."), hit(3, "4."))
    ]
    assert join_chunks(chunks) == "T\nOne.\nTwo.\n\nThree.\n4."


def test_what_does_not_fit_is_left_out_whole_and_the_next_is_tried() -> None:
    context = assemble_context([hit(0, "a b c"), hit(1, "d e f g"), hit(2, "h i")], 5, words)
    assert context.chunk_ids == ("p0#0", "p2#0")
    assert context.num_tokens == 5


def test_most_chunks() -> None:
    assert assemble_context([hit(n, f"w{n}") for n in range(9)], 99, words, max_chunks=2).chunk_ids == (
        "p0#0",
        "p1#0",
    )


def test_when_no_chunk_fits_the_best_is_cut_at_a_word() -> None:
    context = assemble_context([hit(0, "one two three four", "Title"), hit(1, "five six seven")], 2, words)
    assert (context.text, context.is_cut, context.chunk_ids) == ("Title\none", True, ("p0#0",))
    assert context.num_tokens == 2


def test_one_long_word_that_does_not_fit_gives_no_context() -> None:
    assert assemble_context([hit(0, "abcdefgh")], 3, len) == EMPTY_CONTEXT


def test_nothing_found_gives_no_context() -> None:
    assert assemble_context([], 3, words) == EMPTY_CONTEXT
    assert assemble_context([hit(0, " \n")], 3, words) == EMPTY_CONTEXT


def test_repeats_are_dropped() -> None:
    hits = [
        hit(0, "Cats purr and sleep."),
        hit(1, "cats  PURR"),
        hit(2, "Dogs."),
        hit(0, "Dogs."),
        hit(3, ""),
    ]
    assert [chunk.id for chunk in drop_repeats([found.chunk for found in hits])] == ["p0#0", "p2#0"]


def test_dealt_contexts_share_nothing_and_each_gets_a_best_one() -> None:
    hits = [hit(0, "a"), hit(1, "b"), hit(2, "B"), hit(3, "c"), hit(4, "d"), hit(5, "e")]
    dealt = deal_hits(hits, 2)
    assert [ids(hits) for hits in dealt] == [["p0#0", "p3#0", "p5#0"], ["p1#0", "p4#0"]]
    assert deal_hits([], 3) == [[], [], []]


@pytest.mark.parametrize("arguments", [(0, None), (5, 0)])
def test_no_room_is_refused(arguments: tuple) -> None:
    budget, max_chunks = arguments
    with pytest.raises(ValueError, match="expected 1 or more"):
        assemble_context([], budget, words, max_chunks)


def sticky(text: str) -> int:
    """A count that does not add up: joined pieces have more tokens than the pieces alone."""
    return words(text) + 2 * text.count("\n")


@given(st.lists(st.text(alphabet="ab \n", max_size=30), max_size=8), st.integers(1, 25))
def test_any_context_keeps_its_budget_and_is_made_of_whole_chunks(texts: list[str], budget: int) -> None:
    hits = [hit(number, text, title="t" if number % 3 else "") for number, text in enumerate(texts)]
    context = assemble_context(hits, budget, sticky)
    assert context.num_tokens == sticky(context.text) <= budget
    if not context.is_cut:
        by_id = {found.chunk.id: found.chunk for found in hits}
        assert context.text == join_chunks([by_id[chunk_id] for chunk_id in context.chunk_ids])
        assert list(context.chunk_ids) == sorted(context.chunk_ids)
