"""Two-stage search: pages by their best chunk, all of their sentences compete, and no others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from strata.retrieval.refine.rerank import score_each
from strata.retrieval.refine.two_stage import LexicalScorer, PageReader, best_of_pages, search_sentences
from strata.retrieval.types import Chunk, Hit

PAGES = {
    "cats": ["Cats purr. Cats sleep.", "Some cats hunt mice."],
    "dogs": ["Dogs bark."],
    "fish#1": ["Fish swim. Sharks are fish.", "Some fish glow.", "Fish sleep."],
}
CHUNKS = [
    Chunk(id=f"{page}#{number}", page=page, title=page, section="", text=text)
    for page, texts in PAGES.items()
    for number, text in enumerate(texts)
]
reader = PageReader(lambda rows: [CHUNKS[row] for row in rows], len(CHUNKS))


def hit(row: int) -> Hit:
    return Hit(chunk=CHUNKS[row], score=1.0, row=row)


@pytest.mark.parametrize(("row", "page_rows"), [(1, [0, 1]), (2, [2]), (5, [3, 4, 5])])
def test_a_page_is_read_whole_from_any_of_its_chunks(row: int, page_rows: list[int]) -> None:
    assert [(place, chunk.id) for place, chunk in reader.read(hit(row))] == [
        (place, CHUNKS[place].id) for place in page_rows
    ]


def test_a_page_longer_than_one_read() -> None:
    chunks = [Chunk(id=f"p#{n}", page="p", title="", section="", text=f"{n}.") for n in range(150)]
    pages = PageReader(lambda rows: [chunks[row] for row in rows], len(chunks))
    found = list(pages.read(Hit(chunk=chunks[149], score=0.0, row=149)))
    assert [row for row, _ in found] == list(range(150))


def test_the_best_pages_are_those_of_the_first_hits() -> None:
    assert [found.row for found in best_of_pages([hit(5), hit(3), hit(1), hit(0), hit(2)], 2)] == [5, 1]
    assert best_of_pages([], 2) == []


def test_sentences_of_the_best_pages_compete() -> None:
    scorer = score_each(lambda query, texts: [float(query in text.lower()) for text in texts])
    pages = [best_of_pages([hit(5), hit(1), hit(2)], 2), best_of_pages([hit(0)], 2)]
    found = search_sentences(["sleep", "glow"], pages, reader, scorer, 3)
    assert [sentence.chunk.id for sentence in found[0]] == ["fish#1#2.0", "cats#0.1", "fish#1#0.0"]
    assert [sentence.chunk.text for sentence in found[0]] == ["Fish sleep.", "Cats sleep.", "Fish swim."]
    assert [sentence.score for sentence in found[0]] == [1.0, 1.0, 0.0]
    assert [sentence.row for sentence in found[0]] == [5, 0, 3]
    # The other query's only page has no such word: its sentences tie, in reading order.
    assert [sentence.chunk.id for sentence in found[1]] == ["cats#0.0", "cats#0.1", "cats#1.0"]


def test_batches_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from strata.retrieval.refine import two_stage

    queries, pages = ["cats", "", "bark", "fish"], [[hit(2), hit(0)], [], [hit(2)], [hit(4)]]
    whole = search_sentences(queries, pages, reader, LexicalScorer(), 4)
    monkeypatch.setattr(two_stage, "QUERIES_PER_BATCH", 1)
    assert search_sentences(queries, pages, reader, LexicalScorer(), 4) == whole
    assert whole[1] == []


def bm25(query: list[str], documents: Sequence[list[str]]) -> list[float]:
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        total = 0.0
        for word in query:
            n = sum(word in document for document in documents)
            if n:
                idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
                tf = words.count(word)
                total += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        scores.append(total)
    return scores


def test_lexical_scores_are_bm25_among_the_candidates() -> None:
    texts = ["the red cat", "a cat and a cat and dogs", "nothing of the kind", ""]
    found = LexicalScorer(language="none")(["cat dogs unicorn"], [texts])[0]
    expected = bm25(["cat", "dogs", "unicorn"], [text.split() for text in texts])
    assert found == pytest.approx(expected, rel=1e-5)


def test_queries_without_a_known_word_score_zero() -> None:
    scores = LexicalScorer()(["", "Что такое кошка", "!?"], [["A cat."], ["A cat.", "A dog."], [""]])
    assert [values.tolist() for values in scores] == [[0.0], [0.0, 0.0], [0.0]]
    assert scores[0].dtype == np.float32
