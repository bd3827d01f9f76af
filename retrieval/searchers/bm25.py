"""BM25 in two ways: tantivy (on disk, memory-mapped, grows shard by shard) and bm25s (in RAM, faster).

Both see the same tokens, made by tantivy's analyzer, and use k1 = 1.2, b = 0.75 (fixed in tantivy). Both
rank ties by row. A chunk is a document: its title and text. Knows nothing of pages or of how queries come
about.

    score(q, d) = sum over tokens t of q of  idf(t) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * |d| / avgdl))
    idf(t) = ln(1 + (N - n_t + 0.5) / (n_t + 0.5))

Source: Robertson, Zaragoza 2009, "The probabilistic relevance framework: BM25 and beyond", with Lucene's idf.
tantivy rounds |d| down to one of 256 lengths (exact up to 40 tokens); bm25s leaves out the factor (k1 + 1),
which we put back.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tantivy

from strata.engine.types import InputError
from strata.retrieval.corpus.analyzer import Vocabulary, make_analyzer
from strata.retrieval.corpus.chunk import searchable_text
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.manifest import check_part, read_manifest, read_part
from strata.retrieval.index.schemas import TantivySchema
from strata.retrieval.index.tantivy_index import ANALYZER, LOCK_PREFIX, TANTIVY_PART
from strata.retrieval.index_config import Language
from strata.retrieval.library_errors import library_errors
from strata.retrieval.rankings import Candidates, rank_candidates
from strata.retrieval.types import Ranking

NO_CANDIDATES: Candidates = (np.zeros(0, dtype=np.int64), np.zeros(0))


@dataclass(frozen=True, kw_only=True)
class Bm25Parameters:
    """`k1` is the saturation of the term frequency, `b` the weight of the document's length."""

    k1: float = 1.2
    b: float = 0.75


def link_read_only(folder: Path) -> tempfile.TemporaryDirectory[str] | None:
    """A temporary folder of links to the files of one that cannot be written, None when it can be.

    tantivy makes a lock file beside an index even to read it, which a read-only mount refuses.
    """
    if os.access(folder, os.W_OK):
        return None
    links = tempfile.TemporaryDirectory(prefix="strata-tantivy-")
    for path in folder.resolve().iterdir():
        if not path.name.startswith(LOCK_PREFIX):
            Path(links.name, path.name).symlink_to(path)
    return links


class TantivyBm25:
    """Searches the tantivy part of an index folder; memory-mapped, so memory is the system's page cache.

    Args:
        folder: an index folder.
        digests: see `check_part`.

    Raises:
        InputError: no such part, another version, or a damaged file.
    """

    def __init__(self, folder: Path, *, digests: bool | None = None) -> None:
        manifest = read_manifest(folder)
        check_part(folder, manifest, TANTIVY_PART, digests=digests)
        self._folder, self._manifest = folder, manifest
        self._analyzer = make_analyzer(read_part(folder, manifest, TANTIVY_PART, TantivySchema).language)
        self._link_folder = link_read_only(folder / TANTIVY_PART)
        place = self._link_folder.name if self._link_folder else folder / TANTIVY_PART
        with library_errors(self._name_damage):
            self._index = tantivy.Index.open(str(place))
            self._index.register_tokenizer(ANALYZER, self._analyzer)
            self._searcher = self._index.searcher()
        if self._searcher.num_docs != manifest.num_chunks:
            raise InputError(
                f"{folder / TANTIVY_PART}: {self._searcher.num_docs} chunks; expected {manifest.num_chunks}"
            )

    def _name_damage(self, reason: str) -> InputError:
        """The error of a part that tantivy cannot read: its damaged file's, if there is one."""
        check_part(self._folder, self._manifest, TANTIVY_PART, digests=True)
        return InputError(f"{self._folder / TANTIVY_PART}: cannot be read ({reason}); build it again")

    def search(self, queries: Sequence[str], top_k: int) -> Ranking:
        """Ranks the chunks that share a token with the query; repeated tokens count again.

        Args:
            queries: any text; there is no query syntax.
            top_k: places a query.

        Returns:
            Rows and BM25 scores; a query without a known token gets an empty ranking.

        Raises:
            InputError: a file of the part turns out to be damaged.
        """
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            candidates = list(threads.map(lambda query: self._candidates(query, top_k), queries))
        return rank_candidates(candidates, top_k)

    def _candidates(self, query: str, top_k: int) -> Candidates:
        counts = Counter(self._analyzer.analyze(query))
        if not counts:
            return NO_CANDIDATES
        terms = [(tantivy.Occur.Should, self._term_query(*entry)) for entry in counts.items()]
        with library_errors(self._name_damage):
            hits = self._hits(tantivy.Query.boolean_query(terms), top_k)
            rows = self._searcher.fast_field_values("row", [address for _, address in hits])
        return np.array(rows, dtype=np.int64), np.array([score for score, _ in hits])

    def _term_query(self, token: str, count: int) -> Any:
        query = tantivy.Query.term_query(self._index.schema, "text", token, "freq")
        return query if count == 1 else tantivy.Query.boost_query(query, float(count))

    def _hits(self, query: Any, top_k: int) -> list[tuple[float, Any]]:
        """The best `top_k` and whatever ties with the last of them, which tantivy orders otherwise."""
        num_wanted = top_k + 1
        while True:
            hits = self._searcher.search(query, limit=num_wanted, count=False).hits
            if len(hits) < num_wanted or hits[-1][0] < hits[top_k - 1][0]:
                return hits
            num_wanted *= 2


class Bm25s:
    """BM25 in RAM by bm25s, for up to a few million chunks: about 8 bytes a token of the corpus.

    Args:
        store: the chunks; read once, here.
        language: of the analyzer.
        parameters: of the formula; tantivy's by default.
        num_threads: threads of a search; None takes every core.
        backend: numba compiles the search (seconds, once a process); numpy is slower from then on.
    """

    def __init__(
        self,
        store: ChunkStore,
        language: Language = "english",
        *,
        parameters: Bm25Parameters | None = None,
        num_threads: int | None = None,
        backend: Literal["numba", "numpy"] = "numba",
    ) -> None:
        import bm25s

        self._num_threads = num_threads or os.cpu_count() or 1
        parameters = parameters or Bm25Parameters()
        self._factor = np.float32(parameters.k1 + 1)
        self._num_chunks = len(store)
        self._vocabulary = Vocabulary(make_analyzer(language))
        documents = [self._vocabulary.learn(searchable_text(chunk)) for chunk in store]
        self._model = bm25s.BM25(method="lucene", k1=parameters.k1, b=parameters.b, backend=backend)
        if any(documents):
            self._model.index((documents, self._vocabulary.ids()), show_progress=False)

    def search(self, queries: Sequence[str], top_k: int) -> Ranking:
        """Ranks the chunks that share a token with the query; repeated tokens count again.

        Args:
            queries: any text.
            top_k: places a query.

        Returns:
            Rows and BM25 scores; a query without a known token gets an empty ranking.
        """
        known = [self._vocabulary.look_up(query) for query in queries]
        candidates = [NO_CANDIDATES] * len(queries)
        asked = [query for query, tokens in enumerate(known) if tokens]
        if asked:
            found = self._retrieve([known[query] for query in asked], top_k)
            for query, candidate in zip(asked, found, strict=True):
                candidates[query] = candidate
        return rank_candidates(candidates, top_k)

    def _retrieve(self, token_ids: list[list[int]], top_k: int) -> Iterator[Candidates]:
        """At least the best `top_k` of each query, ties over the last place included."""
        num_wanted = min(top_k + 1, self._num_chunks)
        rows_Qk, scores_Qk = self._model.retrieve(
            token_ids,
            k=num_wanted,
            show_progress=False,
            n_threads=self._num_threads,
            backend_selection=self._model.backend,
        )
        for ids, rows, scores in zip(token_ids, rows_Qk, scores_Qk, strict=True):
            if num_wanted > top_k and scores[-1] == scores[top_k - 1] > 0:
                # bm25s keeps whichever it likes of the chunks with the last place's score.
                scores = self._model.get_scores_from_ids(ids)
                rows = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
                scores = scores[rows]
            matching = scores > 0
            yield rows[matching].astype(np.int64), scores[matching] * self._factor
