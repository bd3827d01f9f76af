"""Dense search of an index: exact, or a first pass over codes with exact rescoring. Composes store and top-k.

Legend: Q queries, D dimensions, k places, m candidates of the first pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from strata.engine.types import InputError
from strata.retrieval.index.encoders import Encoder, EncoderSettings, SentenceEncoder
from strata.retrieval.index.vector_shard import VectorShard, exact_scores
from strata.retrieval.index.vector_store import VectorStore, list_encoders
from strata.retrieval.index_config import Codes
from strata.retrieval.searchers.running_top_k import RunningTopK
from strata.retrieval.searchers.scan import MAX_EXACT_VALUES
from strata.retrieval.searchers.top_k import check_queries, find_top_k
from strata.retrieval.types import NO_ROW, Ranking

OVERSAMPLE: dict[Codes, int] = {"int8": 2, "binary": 16}
"""Candidates of a first pass a wanted place."""


class DenseIndex:
    """A `Searcher` by inner product of vectors.

    Args:
        index: an index folder with vectors of this encoder.
        encoder: embeds the queries; has to be the one that made the vectors.
        devices: torch devices that share the shards.
        first_pass: search int8 or binary codes (made by `write_codes`) and rescore the best exactly: reads a
            half or a sixteenth, and may miss rows; `measure_recall` says how many.
        oversample: candidates a wanted place with a first pass; None takes OVERSAMPLE.

    Raises:
        InputError: the vectors are missing, broken, or of another encoder.
    """

    def __init__(
        self,
        index: Path,
        encoder: Encoder,
        *,
        devices: Sequence[str] = ("cpu",),
        first_pass: Codes | None = None,
        oversample: int | None = None,
    ) -> None:
        self.encoder = encoder
        self.devices = tuple(devices)
        self.vectors = VectorStore(index, encoder.name)
        check_encoder(self.vectors, encoder)
        self.codes = VectorStore(index, encoder.name, first_pass) if first_pass else None
        self.oversample = oversample or (OVERSAMPLE[first_pass] if first_pass else 1)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Sequence[str], top_k: int) -> Ranking:
        """The `top_k` best rows of every query text; see `Searcher`."""
        return self.search_vectors(self.encoder.encode_queries(queries), top_k)

    def search_vectors(self, queries_QD: np.ndarray, top_k: int) -> Ranking:
        """The same for vectors: [Q, D] -> [Q, k], ordered by float64 score, ties by lower row."""
        if self.codes is None:
            return self._find(queries_QD, self.vectors, top_k)
        num_candidates = min(top_k * self.oversample, max(top_k, len(self)))
        first = self._find(queries_QD, self.codes, num_candidates)
        return rescore(queries_QD, first.rows, self.vectors, top_k)

    def _find(self, queries_QD: np.ndarray, store: VectorStore, top_k: int) -> Ranking:
        return find_top_k(queries_QD, store.open_shards(), top_k, devices=self.devices).ranking()


def check_encoder(vectors: VectorStore, encoder: Encoder) -> None:
    """Refuses an encoder that is not the one that made the vectors; its folder may have moved."""
    for key, value in encoder.description.items():
        if key != "model" and vectors.description.get(key) != value:
            raise InputError(
                f"{vectors.folder}: made with {key} = {vectors.description.get(key)!r}, the encoder now has "
                f"{value!r}; expected the same encoder"
            )


def rescore(queries_QD: np.ndarray, rows_Qm: np.ndarray, vectors: VectorStore, top_k: int) -> Ranking:
    """Ranks candidates by their exact scores.

    Args:
        queries_QD: [Q, D] float32.
        rows_Qm: [Q, m] candidates, each once a query; -1 is none.
        vectors: what they are rows of.
        top_k: places of the result.
    """
    queries64_QD = check_queries(queries_QD).astype(np.float64)
    best = RunningTopK(len(queries64_QD), top_k)
    query, place = np.nonzero(rows_Qm != NO_ROW)
    rows = rows_Qm[query, place]
    shards = np.searchsorted(vectors.first_rows(), rows, side="right") - 1
    step = max(1, MAX_EXACT_VALUES // vectors.dim)
    for number in np.unique(shards).tolist():
        shard, members = vectors.open_shard(number), np.flatnonzero(shards == number)
        for start in range(0, len(members), step):
            part = members[start : start + step]
            best.add(query[part], rows[part], _scores_of(queries64_QD[query[part]], shard, rows[part]))
    return best.ranking()


def _scores_of(queries64: np.ndarray, shard: VectorShard, rows: np.ndarray) -> np.ndarray:
    places = rows - shard.first_row
    return exact_scores(
        queries64, shard.codes[places], None if shard.scales is None else shard.scales[places]
    )


def measure_recall(found: Ranking, exact: Ranking) -> float:
    """Share of the exact ranking's rows that another ranking found, over all queries; 1 without any."""
    wanted = [set(row[row != NO_ROW].tolist()) for row in exact.rows]
    num_found = sum(len(rows & set(found.rows[query].tolist())) for query, rows in enumerate(wanted))
    return num_found / max(1, sum(map(len, wanted))) if any(wanted) else 1.0


def load_index_encoder(
    index: Path, name: str | None = None, folder: Path | None = None, *, device: str = "cpu"
) -> SentenceEncoder:
    """Loads the sentence-transformers model that made an index's vectors, with the prompts it had then.

    Args:
        index: an index folder.
        name: which of its encoders; None takes the only one.
        folder: of the model; None takes that of the time when the index was made.
        device: torch device of the model.

    Raises:
        InputError: there is none of that name, or several and none is named, or the model is gone.
    """
    names = list_encoders(index)
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        raise InputError(
            f"--encoder: {name or 'missing'}; expected one of: {', '.join(names) or 'there is none'}"
        )
    made = VectorStore(index, name, digests=False).description
    prompts = made.get("prompts", {})
    return SentenceEncoder(
        EncoderSettings(
            model=str(folder or made.get("model")),
            device=device,
            max_tokens=made.get("max_tokens"),
            query_prompt=prompts.get("query"),
            passage_prompt=prompts.get("passage"),
        )
    )
