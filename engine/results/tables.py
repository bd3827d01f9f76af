"""The files a run leaves (submission, scores, prompts), each either whole or absent. Knows nothing of models.

run.json is written by `run_record`.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from strata.engine.files import write_atomically, write_text_atomically
from strata.engine.results.label_columns import label_probabilities, named_probabilities
from strata.engine.types import SUMS, Branch, InputError, Prompt, Question, QuestionScores

NUM_PREDICTED = 3
"""Letters a question in submission.csv (the metric is MAP@3)."""

MEMBER_COLUMN_PREFIX = "member_"
"""Keeps a member called `scores` or `margin` from taking the place of a column of our own."""

NORMALIZED = "normalized"
"""Column of what orders options, where the scores are log-likelihoods: these over the options' lengths."""

LABEL_COLUMN_PREFIX = "probability_"
"""Of the columns that a label has."""

SCORES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("scores", pa.list_(pa.float64())),
        pa.field("probabilities", pa.list_(pa.float64())),
        pa.field("order", pa.list_(pa.int32())),
        pa.field("margin", pa.float64()),
        pa.field("answer", pa.int32(), nullable=True),
    ]
)


def write_submission(path: Path, scores: Sequence[QuestionScores]) -> None:
    """Writes `id,prediction`: the three best letters (labels) of every question, best first, e.g. `D B A`.

    Args:
        path: The CSV file to leave.
        scores: One entry a row, in the order of the file. Fewer than three options give fewer letters.

    Raises:
        OutputError: If the file cannot be written.
    """
    lines = [f"{csv_field(row.question.id)},{csv_field(best_names(row))}\n" for row in scores]
    write_text_atomically(path, "id,prediction\n" + "".join(lines))


def write_label_submission(path: Path, scores: Sequence[QuestionScores]) -> None:
    """Writes `id,<label>,<label>,...`: a probability a label (a letter), 0 for one that a row may not get.

    Raises:
        OutputError: If the file cannot be written.
    """
    columns = named_probabilities(scores)
    lines = [",".join(map(csv_field, ("id", *columns)))]
    for row, cells in zip(scores, zip(*columns.values(), strict=True), strict=True):
        lines.append(",".join([csv_field(row.question.id), *(repr(cell or 0.0) for cell in cells)]))
    write_text_atomically(path, "".join(line + "\n" for line in lines))


def best_letters(order: Sequence[int]) -> str:
    """The first three options of an order as letters: (3, 1, 0, 2) gives `D B A`."""
    return " ".join(string.ascii_uppercase[index] for index in order[:NUM_PREDICTED])


def best_names(row: QuestionScores) -> str:
    """The three best options as results call them: `D B A`, or the names of labels."""
    return " ".join(row.question.name_of(index) for index in row.order[:NUM_PREDICTED])


def csv_field(text: str) -> str:
    """The text as one CSV field (RFC 4180), quoted only when needed.

    Not csv.writer: with newline line ends it leaves a carriage return unquoted before Python 3.13.
    """
    if text == text.strip() and not any(mark in text for mark in ',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'


def write_scores(path: Path, scores: Sequence[QuestionScores]) -> None:
    """Writes scores.parquet, one row a question, with a `member_<name>` column for every member.

    Scores of head `loglik` are log-likelihoods, as prompts.jsonl lets anybody check them; what these are over
    the options' lengths, by which options are ordered, is the column `normalized`.
    Texts to classify have a `probability_<label>` column for every label, null where a row cannot get it.

    Args:
        path: The Parquet file to leave.
        scores: One entry a row. A member that did not score a question leaves null there.

    Raises:
        OutputError: If the file cannot be written.
    """
    columns = [
        [row.question.id for row in scores],
        [as_floats(row.member_scores.get(SUMS, row.scores)) for row in scores],
        [as_floats(row.probabilities) for row in scores],
        [list(row.order) for row in scores],
        [row.margin for row in scores],
        [row.question.answer for row in scores],
    ]
    schema = SCORES_SCHEMA
    members = dict.fromkeys(name for row in scores for name in row.member_scores)
    if SUMS in members:
        del members[SUMS]
        schema = schema.append(pa.field(NORMALIZED, pa.list_(pa.float64())))
        columns.append([as_floats(row.scores) for row in scores])
    for name in members:
        schema = schema.append(pa.field(MEMBER_COLUMN_PREFIX + name, pa.list_(pa.float64())))
        columns.append([as_floats(row.member_scores.get(name)) for row in scores])
    for name, column in label_probabilities(scores).items():
        schema = schema.append(pa.field(LABEL_COLUMN_PREFIX + name, pa.float64()))
        columns.append(column)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def as_floats(values: np.ndarray | None) -> list[float] | None:
    """[O] of any float type as Python floats; None stays None."""
    return None if values is None else np.asarray(values, dtype=np.float64).tolist()


def read_scores(path: Path) -> list[QuestionScores]:
    """Reads what `write_scores` left.

    Args:
        path: A scores.parquet.

    Returns:
        One entry a row. Its question has the id, the answer and the row; prompt and options are empty text,
        because the file does not hold them (`dataclasses.replace` puts the real question in).

    Raises:
        InputError: If the file is missing, is not Parquet, or lacks a column.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path}: expected the scores.parquet of a run ({' '.join(str(error).split())})"
        ) from error
    missing = [name for name in SCORES_SCHEMA.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; expected the scores.parquet of a run")
    members = [name for name in table.column_names if name.startswith(MEMBER_COLUMN_PREFIX)]
    return [scores_of_row(row, number, members) for number, row in enumerate(table.to_pylist(), start=1)]


def scores_of_row(row: dict, number: int, member_columns: Sequence[str]) -> QuestionScores:
    """One row of scores.parquet as the object it was written from."""
    options = ("",) * len(row["scores"])
    question = Question(id=row["id"], prompt="", options=options, answer=row["answer"], row=number)
    present = {name.removeprefix(MEMBER_COLUMN_PREFIX): row[name] for name in member_columns}
    if NORMALIZED in row:
        present[SUMS] = row["scores"]
    return QuestionScores(
        question=question,
        scores=np.array(row.get(NORMALIZED, row["scores"]), dtype=np.float64),
        probabilities=np.array(row["probabilities"], dtype=np.float64),
        member_scores={name: np.array(found, float) for name, found in present.items() if found is not None},
    )


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Writes prompts.jsonl, one line a question, holding one prompt in memory at a time.

    Args:
        path: The JSONL file to leave; plain ASCII, so that no reader splits a line at a Unicode line end.
        prompts: Read once, as the lines are written.

    Raises:
        OutputError: If the file cannot be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="ascii", newline="\n") as file:
            file.writelines(json.dumps(prompt_as_json(prompt)) + "\n" for prompt in prompts)

    write_atomically(path, write)


def prompt_as_json(prompt: Prompt) -> dict:
    """What prompts.jsonl says of a question."""
    return {"id": prompt.question.id, "branches": [branch_as_json(branch) for branch in prompt.branches]}


def branch_as_json(branch: Branch) -> dict:
    """What prompts.jsonl says of a branch; a target is [position, token id], null for a classifier head.

    `siblings` are there where there are any: spans of `ids` that do not see each other.
    """
    siblings = [[int(start), int(end)] for start, end in branch.siblings]
    return {
        "option": int(branch.option),
        "order": [int(index) for index in branch.order],
        "label": branch.label,
        "ids": np.asarray(branch.token_ids).tolist(),
        **({"siblings": siblings} if siblings else {}),
        "text": branch.text,
        "targets": [
            [int(target.position), None if target.token_id is None else int(target.token_id)]
            for target in branch.targets
        ],
    }
