"""`strata search`: opens what the settings name, searches, and leaves contexts, measures and a record."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from strata.engine.files import to_json, write_text_atomically
from strata.engine.machine.settings import MachineSettings
from strata.engine.progress import progress_bar
from strata.engine.questions.question_file import read_questions
from strata.engine.questions.records import read_records
from strata.engine.types import InputError, Question, RunWarnings, as_one_line
from strata.retrieval.evaluate import read_qrels
from strata.retrieval.open_index import open_tools
from strata.retrieval.search import num_stages, search
from strata.retrieval.search_config import SearchConfig
from strata.scripts.contexts.search_contexts import (
    build_contexts,
    list_hits,
    token_counter,
    write_contexts,
)
from strata.scripts.contexts.search_measures import measure_first_pass, measure_stages
from strata.scripts.index import require_packages

if TYPE_CHECKING:
    from strata.scripts.contexts.rerank_member import MemberScorer


def run_search(config: SearchConfig) -> int:
    """Searches, writes contexts, measures. Returns the exit status."""
    config.check()
    require_packages(packages_for(config))
    started = perf_counter()
    warnings = RunWarnings()
    questions = read_asked(config, warnings)
    qrels = None if config.qrels is None else read_qrels(config.qrels)
    count_tokens = None if config.out is None else token_counter(config.tokenizer, warnings)
    record: dict[str, Any] = {"config": asdict(config), "num_questions": len(questions)}
    with member_scorer(config) as member, closing(open_tools(config, member)) as tools:
        with progress_bar("search", num_stages(config), shown=config.progress) as advance:
            result = search(questions, config, tools, advance)
        for message in member.warnings if member else ():
            warnings.say(f"--member: {message}")
        if config.first_pass is not None:
            record["first_pass_recall"] = measure_first_pass(questions, config, tools)
        if qrels is not None:
            record["metrics"] = measure_stages(qrels, questions, result, config, tools)
        if config.out is not None and count_tokens is not None:
            contexts = build_contexts(questions, result, config, tools, count_tokens)
            record["contexts"] = write_contexts(config, questions, contexts, warnings)
            record["questions"] = list_hits(questions, config, result, contexts)
    record |= {"seconds": perf_counter() - started, "warnings": warnings.lines()}
    if config.out is not None:
        _write_record(config.out, record)
    for line in warnings.lines():
        print(as_one_line(f"warning: {line}"), file=sys.stderr)
    return 0


def packages_for(config: SearchConfig) -> tuple[str, ...]:
    """Packages of the extra `retrieval` that a search with these settings imports."""
    needed = {
        "tantivy": True,
        "bm25s": "bm25s" in config.methods or config.pages > 0,
        "sklearn": "tfidf" in config.methods,
        "rapidfuzz": config.order == "edit-distance",
        "sentence_transformers": config.needs_encoder or config.cross_encoder is not None,
        "ir_measures": config.qrels is not None,
    }
    return tuple(name for name, is_needed in needed.items() if is_needed)


def read_asked(config: SearchConfig, warnings: RunWarnings) -> list[Question]:
    """The questions, whatever contexts they have; BEIR queries are questions without options.

    Raises:
        InputError: what cannot be read, or BEIR queries where contexts are to be written.
    """
    if config.questions.suffix.lower() == ".jsonl":
        table = read_records(config.questions, limit=config.limit)
        if "_id" in table.columns and "id" not in table.columns:
            if config.out is not None:
                raise InputError(f"{config.questions}: holds queries; --out expects questions with options")
            return [
                Question(id=str(query["_id"]), prompt=str(query.get("text") or ""), options=())
                for query in (record.values for record in table.records)
            ]
    oddities = RunWarnings()
    questions = read_questions(
        config.questions, id_column=config.id_column, limit=config.limit, warnings=oddities
    )
    for kind, ids in oddities.rows.items():
        if kind in ("empty question", "empty option"):
            warnings.rows[kind] = ids
    for message in oddities.messages:
        warnings.say(message)
    return questions


def member_scorer(config: SearchConfig) -> AbstractContextManager[MemberScorer | None]:
    """The reranker that is a strata member, if wanted."""
    if config.member is None:
        return nullcontext()
    from strata.scripts.contexts.rerank_member import MemberScorer, relevance_members

    return MemberScorer(
        relevance_members(config.member, config.member_adapter, config.member_template),
        MachineSettings(devices=config.devices, memory_gib=config.memory_gib),
        progress=config.progress,
    )


def _write_record(out: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(to_json(record), indent=1, ensure_ascii=False) + "\n"
    write_text_atomically(out.with_suffix(".search.json"), text)
