"""Options nested with their labels, as ARC, OpenBookQA and CommonsenseQA have them on the Hugging Face hub.

`choices` holds the lists `text` and `label`, and `answerKey` names one of the labels: letters in some rows,
digits in others. Such rows become a list of options and a letter that counts by place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from strata.engine.questions.records import Record, RecordTable
from strata.engine.types import LETTERS, InputError

NOTE = "options and labels from nested lists"


def unnest_choices(table: RecordTable) -> tuple[RecordTable, str]:
    """The table with plain lists in place of nested options, and what to say of it.

    Raises:
        InputError: nested options that are not two lists of one length, or an answer that is no label.
    """
    if not any(isinstance(record.values.get("options"), Mapping) for record in table.records):
        return table, ""
    return replace(table, records=[_unnest(record) for record in table.records]), NOTE


def _unnest(record: Record) -> Record:
    nested = record.values.get("options")
    if not isinstance(nested, Mapping):
        return record
    texts, labels = nested.get("text"), nested.get("label")
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        raise InputError(
            f"{record.where}, column 'options': expected lists 'text' and 'label' of one length in it"
        )
    names = [str(label).strip() for label in labels]
    answer = record.values.get("answer")
    values = {**record.values, "options": texts}
    if answer is not None and str(answer).strip():
        values["answer"] = _letter(str(answer).strip(), names, record.where)
    return replace(record, values=values)


def _letter(answer: str, labels: list[str], where: str) -> str:
    if labels.count(answer) != 1 or len(labels) > len(LETTERS):
        raise InputError(
            f"{where}, column 'answer': {answer[:60]!r}; expected one of the labels {', '.join(labels)[:200]}"
        )
    return LETTERS[labels.index(answer)]
