"""The contexts of `strata search`: which columns there are, what goes into them, and what is said of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strata.engine.types import Question, RunWarnings
from strata.retrieval.queries import build_queries
from strata.retrieval.refine.assemble import Context, CountTokens, assemble_context, deal_hits
from strata.retrieval.search import SearchResult, SearchTools, refine_method
from strata.retrieval.search_config import SearchConfig
from strata.retrieval.types import Hit
from strata.scripts.contexts.context_table import write_with_contexts

LISTED_HITS = 10
"""A question; more of them would make the record of a large job larger than its contexts."""
CHARACTERS_PER_TOKEN = 3
"""Assumed where no tokenizer is given; English has four or more, so a context rather turns out short."""


def token_counter(tokenizer: Path | None, warnings: RunWarnings) -> CountTokens:
    """Counts tokens as the reader's tokenizer does, special tokens left out."""
    if tokenizer is None:
        warnings.say(f"no --tokenizer: budgets take {CHARACTERS_PER_TOKEN} characters for a token")
        return lambda text: -(-len(text) // CHARACTERS_PER_TOKEN)
    from strata.engine.prompts.tokenizer import read_tokenizer

    loaded = read_tokenizer(tokenizer)
    # A context is longer than some tokenizers' limit, which is the model's matter.
    loaded.model_max_length = sys.maxsize
    return lambda text: len(loaded(text, add_special_tokens=False)["input_ids"])


def build_contexts(
    questions: Sequence[Question],
    result: SearchResult,
    config: SearchConfig,
    tools: SearchTools,
    count_tokens: CountTokens,
) -> dict[str, list[Context]]:
    """Q contexts by column: fused ones, which share no chunk, and those of each method alone."""
    name = config.context_column
    names = [name, *(f"{name}_{number}" for number in range(2, config.num_contexts + 1))]
    dealt = [deal_hits(hits, config.num_contexts) for hits in result.hits]
    hits_of_column: dict[str, list[list[Hit]]] = {
        column: [hands[number] for hands in dealt] for number, column in enumerate(names)
    }
    if config.context_per_method:
        for method in config.methods:
            hits_of_column[f"{name}_{method}"] = refine_method(method, result, questions, config, tools)
    return {
        column: [
            assemble_context(hits, config.context_tokens, count_tokens, config.context_chunks)
            for hits in of_questions
        ]
        for column, of_questions in hits_of_column.items()
    }


@dataclass(frozen=True, kw_only=True)
class ColumnSummary:
    """What a column of contexts is like: how many are empty or cut, chunks and tokens on average."""

    num_empty: int
    num_cut: int
    mean_chunks: float
    mean_tokens: float


def write_contexts(
    config: SearchConfig,
    questions: Sequence[Question],
    contexts: Mapping[str, Sequence[Context]],
    warnings: RunWarnings,
) -> dict[str, Any]:
    """Writes the question file with its contexts and prints a line a column; returns their summaries."""
    assert config.out is not None
    columns = {name: [context.text for context in column] for name, column in contexts.items()}
    write_with_contexts(config.questions, config.out, questions, columns)
    summaries = {}
    for name, column in contexts.items():
        if empty := [
            question.id for question, context in zip(questions, column, strict=True) if not context.text
        ]:
            warnings.rows[f"no context in column {name}"] = empty
        summary = summaries[name] = _summarise(column)
        print(
            f"{config.out}: {name}: {len(column)} contexts of {summary.mean_tokens:,.0f} tokens and "
            f"{summary.mean_chunks:.1f} chunks on average"
        )
    return {name: asdict(summary) for name, summary in summaries.items()}


def list_hits(
    questions: Sequence[Question],
    config: SearchConfig,
    result: SearchResult,
    contexts: Mapping[str, Sequence[Context]],
) -> list[dict[str, Any]]:
    """What each question asked, what the last stage found best for it, and what went into its contexts.

    Args:
        questions: Q questions.
        config: of the search.
        result: what it found.
        contexts: Q contexts by column.

    Returns:
        Q objects: `id`; `queries`; `hits`, the best LISTED_HITS as `chunk`, `title` and `score`; `contexts`,
        the ids of each column's chunks, in their order.
    """
    queries = build_queries(questions, config.query)
    asked: list[list[str]] = [[] for _ in questions]
    for owner, text in zip(queries.owners.tolist(), queries.texts, strict=True):
        asked[owner].append(text)
    return [
        {
            "id": question.id,
            "queries": asked[number],
            "hits": [
                {"chunk": hit.chunk.id, "title": hit.chunk.title, "score": hit.score}
                for hit in hits[:LISTED_HITS]
            ],
            "contexts": {name: list(column[number].chunk_ids) for name, column in contexts.items()},
        }
        for number, (question, hits) in enumerate(zip(questions, result.hits, strict=True))
    ]


def _summarise(contexts: Sequence[Context]) -> ColumnSummary:
    return ColumnSummary(
        num_empty=sum(not context.text for context in contexts),
        num_cut=sum(context.is_cut for context in contexts),
        mean_chunks=sum(len(context.chunk_ids) for context in contexts) / len(contexts),
        mean_tokens=sum(context.num_tokens for context in contexts) / len(contexts),
    )
