"""Scores hits again with something slower and better: a cross-encoder, sentences, or any text scorer.

A text scorer gets all queries at once, so that a scorer which streams its weights (a strata member) reads
them once. Knows nothing of indexes or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from strata.engine.types import InputError
from strata.retrieval.corpus.chunk import searchable_text, split_sentences
from strata.retrieval.refine.fuse import scale_to_unit
from strata.retrieval.refine.hits import rank_hits
from strata.retrieval.types import Hit


class TextScorer(Protocol):
    """Says how well texts suit queries."""

    def __call__(
        self, queries: Sequence[str], texts: Sequence[Sequence[str]]
    ) -> Sequence[Sequence[float] | np.ndarray]:
        """Returns a score for every text of every query ([Q] texts each), the higher the better."""
        ...


def score_each(score: Callable[[str, Sequence[str]], Sequence[float] | np.ndarray]) -> TextScorer:
    """The text scorer that calls a function of one query and its texts for query after query."""
    return lambda queries, texts: [score(*pair) for pair in zip(queries, texts, strict=True)]


def rerank_hits(
    queries: Sequence[str], hits: Sequence[Sequence[Hit]], scorer: TextScorer, top_k: int
) -> list[list[Hit]]:
    """Sorts the best `top_k` hits of every query by a scorer's opinion; later hits are dropped.

    Args:
        queries: [Q] texts.
        hits: [Q] hits, best first. The scorer sees their title and text.
        scorer: sees all queries in one call; queries that found nothing are not among them.
        top_k: how many hits a query has scored again.

    Returns:
        [Q] hits, best first, with the scorer's scores; ties keep the order they had.

    Raises:
        ValueError: the scorer does not return one score a text.
        FloatingPointError: it returns NaN.
    """
    kept = [list(found[:top_k]) for found in hits]
    asked = [query for query, found in enumerate(kept) if found]
    if not asked:
        return kept
    texts = [[searchable_text(hit.chunk) for hit in kept[query]] for query in asked]
    scores = scorer([queries[query] for query in asked], texts)
    for query, values in zip(asked, scores, strict=True):
        kept[query] = rank_hits(kept[query], values)
    return kept


def blend_hits(
    found: Sequence[Sequence[Hit]], reranked: Sequence[Sequence[Hit]], weight: float = 0.5
) -> list[list[Hit]]:
    """Sorts reranked hits by (1 - weight) x the score they were found with + weight x the reranker's.

    Both scores are scaled to 0..1 among the reranked hits of a query. Helps a reranker that alone is no
    better than the search.

    Source: Wang, Zhuang and Zuccon, "BERT-based dense retrievers require interpolation with BM25 for
    effective passage retrieval", ICTIR 2021.

    Args:
        found: [Q] hits as they were found, best first.
        reranked: [Q] what `rerank_hits` made of them.
        weight: the reranker's share, 0..1.

    Returns:
        [Q] hits, best first; ties keep the order in which they were found. Hits that were not reranked are
        left out.
    """
    return [_blend(*pair, weight) for pair in zip(found, reranked, strict=True)]


def _blend(found: Sequence[Hit], reranked: Sequence[Hit], weight: float) -> list[Hit]:
    kept = found[: len(reranked)]
    opinions = {hit.chunk.id: hit.score for hit in reranked}
    old = scale_to_unit(np.array([hit.score for hit in kept]))
    new = scale_to_unit(np.array([opinions[hit.chunk.id] for hit in kept]))
    return rank_hits(kept, (1 - weight) * old + weight * new)


class SentenceScorer:
    """Scores a text by its best sentence (the title is one), as another scorer sees sentences.

    Source: the passage score MaxP of Dai and Callan, "Deeper text understanding for IR with contextual neural
    language modeling", SIGIR 2019, over sentences.

    Args:
        scorer: compares queries with sentences. It gets those of all queries in one call, so that it can
            encode a sentence that several queries share once; peak memory is what it takes for that.
    """

    def __init__(self, scorer: TextScorer) -> None:
        self._scorer = scorer

    def __call__(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """[Q] arrays of float32, one score a text."""
        # A blank text has no sentence and is scored as it is.
        sentences = [[split_sentences(text) or [text] for text in group] for group in texts]
        scores = self._scorer(queries, [list(chain.from_iterable(groups)) for groups in sentences])
        return [_best_of_each(*pair) for pair in zip(scores, sentences, strict=True)]


def _best_of_each(values: Sequence[float] | np.ndarray, groups: Sequence[Sequence[str]]) -> np.ndarray:
    """[n] float32: the highest of the values of each of n groups, which follow one another."""
    starts = np.cumsum([0, *(len(group) for group in groups)])[:-1]
    return np.maximum.reduceat(np.asarray(values, dtype=np.float32), starts) if len(groups) else np.empty(0)


class CrossEncoderScorer:
    """A sentence-transformers CrossEncoder as a text scorer.

    Args:
        model: a model folder, as downloaded.
        device: such as `cpu` or `cuda:0`; None lets the library choose.
        batch_size: pairs a forward pass.
        max_tokens: longest pair in tokens; the model's limit by default.
        show_progress: show the library's progress bar.

    Raises:
        InputError: no such folder, or not a model with one score a pair.
    """

    def __init__(
        self,
        model: Path,
        *,
        device: str | None = None,
        batch_size: int = 32,
        max_tokens: int | None = None,
        show_progress: bool = False,
    ) -> None:
        from sentence_transformers import CrossEncoder

        from strata.engine.model_files.config_file import read_config_json, refuse_model_code
        from strata.engine.model_files.library_errors import one_line
        from strata.engine.model_files.tokenizer_files import check_tokenizer_files

        if not (model / "config.json").is_file():
            raise InputError(f"{model}: no config.json there; expected the folder of a cross-encoder")
        refuse_model_code(read_config_json(model), str(model / "config.json"))
        check_tokenizer_files(model)
        with one_line(model, "cannot be loaded as a cross-encoder"):
            self._model = CrossEncoder(
                str(model),
                device=device,
                max_length=max_tokens,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        if (num_labels := self._model.num_labels) != 1:
            raise InputError(
                f"{model}: gives {num_labels} scores a pair; expected a reranker, which gives one"
            )
        self._batch_size = batch_size
        self._show_progress = show_progress

    def __call__(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Logits, one a text, float32: the order is that of the probabilities, without their saturation."""
        from torch.nn import Identity

        pairs = [(query, text) for query, group in zip(queries, texts, strict=True) for text in group]
        flat = self._model.predict(
            pairs,
            batch_size=self._batch_size,
            activation_fn=Identity(),
            show_progress_bar=self._show_progress,
            convert_to_numpy=True,
        )
        ends = np.cumsum([len(group) for group in texts])
        return np.split(np.asarray(flat, dtype=np.float32), ends[:-1])
