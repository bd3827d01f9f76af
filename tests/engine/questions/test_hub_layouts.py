"""Benchmarks as the Hugging Face hub has them: ARC, OpenBookQA and MMLU, in JSON Lines and Parquet.

The layouts are those of the data set cards of allenai/ai2_arc, allenai/openbookqa and cais/mmlu.
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strata.engine.questions.question_file import read_questions
from strata.engine.types import InputError, Question, RunWarnings

TEXTS = pa.list_(pa.string())
CHOICES = pa.struct({"text": TEXTS, "label": TEXTS})
ARC = [
    {
        "id": "Mercury_1",
        "question": "Which is wet?",
        "choices": {"text": ["sand", "rain", "dust"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    {
        "id": "NYSED_2",
        "question": "Which is dry?",
        "choices": {"text": ["sand", "rain"], "label": ["1", "2"]},
        "answerKey": "1",
    },
]
READ_ARC = [
    Question(id="Mercury_1", prompt="Which is wet?", options=("sand", "rain", "dust"), answer=1, row=1),
    Question(id="NYSED_2", prompt="Which is dry?", options=("sand", "rain"), answer=0, row=2),
]
MMLU = [
    {"question": "2 + 2?", "subject": "algebra", "choices": ["1", "2", "3", "4"], "answer": 3},
    {"question": "1 + 1?", "subject": "algebra", "choices": ["1", "2", "3", "4"], "answer": 1},
]
READ_MMLU = [
    Question(id="1", prompt="2 + 2?", options=("1", "2", "3", "4"), answer=3, row=1),
    Question(id="2", prompt="1 + 1?", options=("1", "2", "3", "4"), answer=1, row=2),
]
OPENBOOKQA = [{"question_stem" if key == "question" else key: row[key] for key in row} for row in ARC]
LAYOUTS = {
    "arc": (ARC, {"choices": CHOICES}, READ_ARC),
    "openbookqa": (OPENBOOKQA, {"choices": CHOICES}, READ_ARC),
    "mmlu": (MMLU, {"choices": TEXTS}, READ_MMLU),
}


@pytest.fixture(params=["jsonl", "parquet"])
def write(request, tmp_path):
    def run(rows, types):
        path = tmp_path / f"test.{request.param}"
        if request.param == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            return path
        schema = pa.schema(
            {
                name: types.get(name, pa.int64() if isinstance(value, int) else pa.string())
                for name, value in rows[0].items()
            }
        )
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
        return path

    return run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_hub_are_read(layout, write):
    rows, types, expected = LAYOUTS[layout]
    warnings = RunWarnings()
    assert read_questions(write(rows, types), warnings=warnings) == expected
    (said,) = warnings.messages
    assert "read as" in said


def test_unanswered_rows_have_no_answer(write):
    rows = [ARC[0], ARC[1] | {"answerKey": ""}]
    warnings = RunWarnings()
    questions = read_questions(write(rows, {"choices": CHOICES}), warnings=warnings)
    assert [question.answer for question in questions] == [1, None]
    assert warnings.rows == {"no answer": ["NYSED_2"]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answerKey": "D"}, "1, column 'answer': 'D'; expected one of the labels A, B, C"),
        (
            {"choices": {"text": ["a", "b"], "label": ["A"]}},
            "1, column 'options': expected lists 'text' and 'label' of one length",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_row(change, reason, write):
    with pytest.raises(InputError, match=reason):
        read_questions(write([ARC[0] | change], {"choices": CHOICES}), warnings=RunWarnings())
