"""Two-stage search: the best pages first, then the best sentences within those pages.

A page's rank is that of its best chunk. Knows nothing of how chunks are searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from strata.retrieval.corpus.chunk import searchable_text, split_sentences
from strata.retrieval.index_config import Language
from strata.retrieval.refine.hits import ReadChunks, rank_hits
from strata.retrieval.refine.rerank import TextScorer
from strata.retrieval.types import Chunk, Hit

QUERIES_PER_BATCH = 64
"""Queries whose pages' sentences are in memory together."""

_ROWS_PER_READ = 64


def best_of_pages(hits: Sequence[Hit], num_pages: int) -> list[Hit]:
    """The best hit of each of the best pages of one query: the first stage.

    Args:
        hits: best first.
        num_pages: how many pages.

    Returns:
        One hit a page, best first.
    """
    best: dict[str, Hit] = {}
    for hit in hits:
        best.setdefault(hit.chunk.page, hit)
    return list(best.values())[:num_pages]


def search_sentences(
    queries: Sequence[str],
    pages: Sequence[Sequence[Hit]],
    reader: PageReader,
    scorer: TextScorer,
    top_k: int,
) -> list[list[Hit]]:
    """Finds the best sentences of pages: the second stage.

    Args:
        queries: [Q] texts.
        pages: [Q] any hit of each of a query's pages, such as `best_of_pages` gives.
        reader: reads all chunks of a page.
        scorer: compares queries with sentences (title and sentence); called for QUERIES_PER_BATCH queries at
            a time, which bounds memory.
        top_k: sentences a query.

    Returns:
        [Q] hits, best first: chunks of one sentence with the id of their chunk, "." and the sentence's number
        in it; ties keep the pages' and then the reading order.
    """
    found: list[list[Hit]] = []
    for start in range(0, len(queries), QUERIES_PER_BATCH):
        batch = range(start, min(start + QUERIES_PER_BATCH, len(queries)))
        sentences = [_sentences_of_pages(pages[query], reader) for query in batch]
        texts = [[searchable_text(sentence.chunk) for sentence in hits] for hits in sentences]
        scores = scorer([queries[query] for query in batch], texts)
        found += [rank_hits(hits, values, top_k) for hits, values in zip(sentences, scores, strict=True)]
    return found


def _sentences_of_pages(pages: Sequence[Hit], reader: PageReader) -> list[Hit]:
    return [
        sentence for hit in pages for row, chunk in reader.read(hit) for sentence in _sentences(chunk, row)
    ]


def _sentences(chunk: Chunk, row: int) -> Iterator[Hit]:
    for number, text in enumerate(split_sentences(chunk.text)):
        yield Hit(chunk=replace(chunk, id=f"{chunk.id}.{number}", text=text), score=0.0, row=row)


class PageReader:
    """Reads all chunks of the page that a hit belongs to: they lie in neighbouring rows.

    Args:
        read_chunks: the index's chunks by row.
        num_rows: rows of the index.
    """

    def __init__(self, read_chunks: ReadChunks, num_rows: int) -> None:
        self._read_chunks = read_chunks
        self._num_rows = num_rows

    def read(self, hit: Hit) -> Iterator[tuple[int, Chunk]]:
        """Yields row and chunk of the hit's page, in reading order."""
        # A chunk's id ends in its number within the page, so the page starts that many rows before.
        first = hit.row - int(hit.chunk.id.rpartition("#")[2])
        for start in range(first, self._num_rows, _ROWS_PER_READ):
            rows = range(start, min(start + _ROWS_PER_READ, self._num_rows))
            for row, chunk in zip(rows, self._read_chunks(rows), strict=True):
                if chunk.page != hit.chunk.page:
                    return
                yield row, chunk


class LexicalScorer:
    """BM25 among the texts of one query: word statistics are those of its candidates.

    Source: Robertson et al., "Okapi at TREC-3", 1994, in bm25s's "lucene" form.

    Args:
        language: of the words' stems and stop words, as in `strata index`.
    """

    def __init__(self, language: Language = "english") -> None:
        from strata.retrieval.corpus.analyzer import make_analyzer

        self._analyzer = make_analyzer(language)

    def __call__(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """[Q] arrays of float32 of 0 or more, one score a text; 0 where no word is shared."""
        return [self._score(*pair) for pair in zip(queries, texts, strict=True)]

    def _score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        from bm25s import BM25

        from strata.retrieval.corpus.analyzer import Vocabulary

        vocabulary = Vocabulary(self._analyzer)
        documents = [vocabulary.learn(text) for text in texts]
        words = vocabulary.look_up(query)
        if not words:
            return np.zeros(len(texts), dtype=np.float32)
        index = BM25(method="lucene")
        index.index((documents, vocabulary.ids()), show_progress=False)
        return np.asarray(index.get_scores_from_ids(words), dtype=np.float32)
