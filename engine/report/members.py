"""Each member of a run: how it scored, what it said, and how good it is where answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from strata.engine.heads.debias import STATED_ORDER
from strata.engine.heads.probabilities import option_probabilities
from strata.engine.questions.metrics import evaluate
from strata.engine.report.summary import plans_of
from strata.engine.report.values import distinct, file_name, format_value, plain, section
from strata.engine.types import QuestionScores

Rows = list[QuestionScores]


def member_names(record: Mapping[str, Any]) -> list[str]:
    """Names of the members, in the run's order."""
    pipeline = section(record, "run_info", "config", "pipeline", "members")
    return list(pipeline) or [str(name) for name in section(record, "plan").get("members") or []]


def rows_by_member(names: Sequence[str], scores: Sequence[QuestionScores]) -> dict[str, Rows]:
    """What each member said of the questions that it scored; a lone one said what the run says."""
    if len(names) == 1:
        return {names[0]: list(scores)}
    found = {name: rows_of(name, scores) for name in names}
    return {name: rows for name, rows in found.items() if rows}


def rows_of(key: str, scores: Sequence[QuestionScores]) -> Rows:
    """The rows that have scores of their own under a key, with these in place of the run's."""
    return [
        replace(
            row,
            scores=row.member_scores[key],
            probabilities=option_probabilities(row.member_scores[key]),
            member_scores={},
        )
        for row in scores
        if len(row.member_scores.get(key, ())) == len(row.question.options)
    ]


def rows_before_debiasing(names: Sequence[str], scores: Sequence[QuestionScores]) -> dict[str, Rows]:
    """What members that were debiased said of the options in their stated order; others are left out."""
    keys = {name: f"{name}_{STATED_ORDER}" for name in names} if len(names) > 1 else {}
    if len(names) == 1:
        keys = {names[0]: STATED_ORDER}
    found = {name: rows_of(key, scores) for name, key in keys.items()}
    return {name: rows for name, rows in found.items() if rows}


def member_table(record: Mapping[str, Any], rows: Mapping[str, Rows]) -> list[list[str]]:
    """A header and a row a member; columns that say nothing of any are left out. Empty for a lone member."""
    names = member_names(record)
    if len(names) < 2:
        return []
    table = [_facts_of(record, name, rows.get(name, [])) for name in names]
    columns = [column for column in table[0] if any(row[column] for row in table)]
    return [columns, *([row[column] for column in columns] for row in table)]


def _own(plan: Mapping[str, Any], key: str, name: str) -> object:
    """What a plan says of one of its members: of a shared sweep it may list one value each."""
    value, names = plan.get(key), plan.get("members") or []
    if isinstance(value, list) and len(value) == len(names):
        return value[names.index(name)]
    return value


def _facts_of(record: Mapping[str, Any], name: str, rows: Rows) -> dict[str, str]:
    settings = section(record, "run_info", "config", "pipeline", "members", name)
    measured, metrics = section(record, "measured"), evaluate(rows) or {}
    plans = [plan for plan in plans_of(record) if name in (plan.get("members") or [])]
    weight = section(measured, "weights").get(name)
    return {
        "member": name,
        "model": file_name(settings.get("model", "")),
        "adapter": file_name(settings.get("adapter") or ""),
        "head": plain(settings.get("head") or distinct([_own(plan, "head", name) for plan in plans])),
        "debias": plain(settings.get("debias", "")),
        "context": plain(settings.get("context", "")),
        "dtype": plain(distinct([plan.get("dtype") for plan in plans])),
        "questions": f"{len(rows):,}",
        "weight": "" if weight is None else f"{weight:.3f}",
        "MAP@3": format_value("map_at_3", metrics.get("map_at_3")),
        "accuracy": format_value("accuracy", metrics.get("accuracy")),
    }
