"""TF-IDF with a vocabulary fitted on the questions only: no other word costs anything.

The recipe of the public notebooks of Kaggle's LLM Science Exam: word 1-2-grams of the questions as the
vocabulary, document frequencies of the first 500,000 chunks, sublinear term frequency, cosine, the corpus in
slices with a running top-k. Needs no index but the chunks; one slice is in memory at a time.

    weight(t, d) = (1 + ln tf) * (1 + ln((1 + N) / (1 + n_t))), each vector of length 1

Source: scikit-learn's TfidfTransformer (smoothed idf).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from strata.retrieval.corpus.chunk import searchable_text
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.rankings import rank_candidates, read_candidates
from strata.retrieval.types import Ranking, ReportCount

ROWS_PER_SLICE = 100_000
TEXTS_PER_CALL = 2_000
WORDS = r"(?u)\b\w+\b"


@dataclass(frozen=True, kw_only=True)
class TfidfSettings:
    """What is a term, and what it weighs.

    A term is a run of `ngrams` words (shortest and longest run), without scikit-learn's English stop words
    when `stop_words` is "english". `sublinear` takes 1 + ln tf instead of tf. Document frequencies are
    counted on the first `num_idf_rows` chunks.
    """

    ngrams: tuple[int, int] = (1, 2)
    sublinear: bool = True
    stop_words: str | None = "english"
    num_idf_rows: int = 500_000

    def __post_init__(self) -> None:
        if self.num_idf_rows < 1:
            raise ValueError(f"num_idf_rows is {self.num_idf_rows}; expected 1 or more")


class QuestionTfidf:
    """Ranks an index's chunks by TF-IDF cosine, the vocabulary being that of the queries of each call.

    So a score depends on the other queries of the call (through the vocabulary, hence the vectors' lengths):
    give all of a job's queries at once.

    Args:
        store: the chunks; read twice a search (once for the document frequencies, of the first rows only).
        settings: of the terms; the recipe's by default.
        rows_per_slice: chunks in memory at a time.
        report: called with the number of chunks scored so far, after each slice.
    """

    def __init__(
        self,
        store: ChunkStore,
        *,
        settings: TfidfSettings | None = None,
        rows_per_slice: int = ROWS_PER_SLICE,
        report: ReportCount = lambda num_chunks: None,
    ) -> None:
        if rows_per_slice < 1:
            raise ValueError(f"rows_per_slice is {rows_per_slice}; expected 1 or more")
        settings = settings or TfidfSettings()
        self._store = store
        self._counter = CountVectorizer(
            ngram_range=settings.ngrams, stop_words=settings.stop_words, token_pattern=WORDS
        )
        self._weighting = TfidfTransformer(sublinear_tf=settings.sublinear)
        self._rows_per_slice = rows_per_slice
        self._num_idf_rows = settings.num_idf_rows
        self._report = report

    def search(self, queries: Sequence[str], top_k: int) -> Ranking:
        """Ranks the chunks that share a term with the query, best first.

        Args:
            queries: any text, all of a job.
            top_k: places a query.

        Returns:
            Rows and cosines in (0, 1]; a query without a term in the corpus gets an empty ranking.
        """
        nothing = (np.zeros(0, dtype=np.int64), np.zeros(0))
        ranking = rank_candidates([nothing] * len(queries), top_k)
        if not self._fit_vocabulary(queries):
            return ranking
        self._weighting.idf_ = self._inverse_document_frequencies()
        queries_QV = self._weighting.transform(self._counter.transform(queries))
        first_row = 0
        for counts_RV in self._slices():
            scores_QR = (queries_QV @ self._weighting.transform(counts_RV).T).tocsr()
            ranking = _merge(ranking, scores_QR, first_row, top_k)
            first_row += counts_RV.shape[0]
            self._report(first_row)
        return ranking

    def _fit_vocabulary(self, queries: Sequence[str]) -> bool:
        try:
            self._counter.fit(queries)
        except ValueError:
            # scikit-learn's only reason with these settings: not one word in any query.
            return False
        return True

    def _inverse_document_frequencies(self) -> np.ndarray:
        """[V] float64, from the first chunks."""
        num_texts = 0
        num_holding_V = np.zeros(len(self._counter.vocabulary_))
        for texts in _batches(self._texts(), self._num_idf_rows):
            num_texts += len(texts)
            num_holding_V += self._count(texts).getnnz(axis=0)
        return 1 + np.log((1 + num_texts) / (1 + num_holding_V))

    def _slices(self) -> Iterator[Any]:
        texts = self._texts()
        while True:
            counts = [self._count(batch) for batch in _batches(texts, self._rows_per_slice)]
            if not counts:
                return
            yield sparse.vstack(counts, format="csr")

    def _texts(self) -> Iterator[str]:
        return (searchable_text(chunk) for chunk in self._store)

    def _count(self, texts: list[str]) -> Any:
        return self._counter.transform(texts)


def _batches(texts: Iterable[str], num_texts: int) -> Iterator[list[str]]:
    """Takes `num_texts` from an iterator, or what is left, in lists of at most TEXTS_PER_CALL."""
    rest = islice(texts, num_texts)
    while batch := list(islice(rest, TEXTS_PER_CALL)):
        yield batch


def _merge(ranking: Ranking, scores_QR: Any, first_row: int, top_k: int) -> Ranking:
    """The best of a ranking so far and of one more slice's scores [Q, R] (sparse)."""
    candidates = []
    for query, (begin, end) in enumerate(pairwise(scores_QR.indptr)):
        rows_before, scores_before = read_candidates(ranking, query)
        rows = np.concatenate((rows_before, scores_QR.indices[begin:end] + np.int64(first_row)))
        scores = np.concatenate((scores_before, scores_QR.data[begin:end]))
        candidates.append((rows, scores))
    return rank_candidates(candidates, top_k)
