"""Part of the retrieval bench: what a first pass over codes finds of an exact dense search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from strata.engine.types import Question
from strata.retrieval.index.encode import write_codes
from strata.retrieval.index.encoders import Encoder
from strata.retrieval.index_config import Codes
from strata.retrieval.queries import build_queries
from strata.retrieval.searchers.dense import DenseIndex, measure_recall
from strata.scripts.bench.record import print_table

KINDS: tuple[Codes, ...] = ("int8", "binary")
OVERSAMPLING = (2, 4, 8, 16)
TOP_K = 100


def measure_first_passes(
    questions: Mapping[Path, Sequence[Question]], encoder: Encoder, top_k: int = TOP_K
) -> dict[str, float]:
    """Recall of the exact search's best, by kind of code and candidates a wanted place; prints a table.

    Args:
        questions: by index folder, which has vectors of this encoder; codes are made where they are missing.
        encoder: embeds the questions.
        top_k: places that an exact search is compared in.

    Returns:
        `first_pass_recall_<kind>_<N>x_<index>` of each index, and without its name that of the worst one.
    """
    figures: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    for kind in KINDS:
        recalls = {
            index.name: recall_of(index, asked, encoder, kind, top_k) for index, asked in questions.items()
        }
        for place, oversample in enumerate(OVERSAMPLING):
            key = f"first_pass_recall_{kind}_{oversample}x"
            by_index = {name: recall[place] for name, recall in recalls.items()}
            figures |= {f"{key}_{name}": recall for name, recall in by_index.items()}
            figures[key] = min(by_index.values())
            rows.append({f"recall@{top_k} of": kind, "oversampled": f"{oversample}x", **by_index})
    print_table(rows)
    return figures


def recall_of(
    index: Path, questions: Sequence[Question], encoder: Encoder, kind: Codes, top_k: int
) -> list[float]:
    """One recall for each of OVERSAMPLING."""
    write_codes(index, encoder.name, kind)
    queries_QD = encoder.encode_queries(build_queries(questions, "prompt-options").texts)
    exact = DenseIndex(index, encoder).search_vectors(queries_QD, top_k)
    passes = [
        DenseIndex(index, encoder, first_pass=kind, oversample=oversample) for oversample in OVERSAMPLING
    ]
    return [measure_recall(dense.search_vectors(queries_QD, top_k), exact) for dense in passes]
