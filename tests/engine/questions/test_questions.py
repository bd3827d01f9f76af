"""Question files: what is read from each format, what is refused and how it is told, what is merely odd."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strata.engine.questions.question_file import read_questions
from strata.engine.types import LETTERS, InputError, Question, RunWarnings

KAGGLE200 = Path(__file__).parents[4] / "shared" / "data" / "kaggle200.csv"


@pytest.fixture
def read(tmp_path):
    """`read(name, content, **settings)` -> (questions, warnings); content: text, bytes or a list of rows."""

    def run(name, content, *, strict=False, **settings):
        path = tmp_path / name
        if name.endswith(".parquet") and isinstance(content, list):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
        elif isinstance(content, list):
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        warnings = RunWarnings(strict=strict)
        return read_questions(path, warnings=warnings, **settings), warnings

    return run


def test_kaggle_csv(read):
    text = 'id,prompt,context,A,B,answer\n0,"Why,\nso?",He said ""x"",a,b,B\n\n007, y ,c,\u00e9,d,A\n'
    questions, warnings = read("q.csv", text)
    first = Question(id="0", prompt="Why,\nso?", options=("a", "b"), answer=1, context='He said ""x""', row=1)
    second = Question(id="007", prompt=" y ", options=("\u00e9", "d"), answer=0, context="c", row=2)
    assert questions == [first, second]
    assert warnings.rows == {}


def test_kaggle_columns_in_any_order_with_a_byte_order_mark(read):
    questions, _ = read("q.CSV", "\ufeffB,A,prompt,source,id\nb,a,x,s,1\n")
    assert questions == [Question(id="1", prompt="x", options=("a", "b"), row=1)]


def test_twenty_six_options(read):
    questions, _ = read("q.csv", f"id,prompt,{','.join(LETTERS)},answer\n1,x,{','.join(LETTERS.lower())},Z\n")
    assert questions[0].options == tuple(LETTERS.lower())
    assert questions[0].answer == 25


def test_generic_jsonl(read):
    rows = [
        {"id": 7, "question": "x", "options": ["a", 1.50, 3], "answer": 2, "context": "c"},
        {"id": "b", "prompt": "y", "options": ["a", "b"], "answer": "B"},
    ]
    questions, warnings = read("q.jsonl", rows)
    assert questions[0] == Question(
        id="7", prompt="x", options=("a", "1.5", "3"), answer=2, context="c", row=1
    )
    assert questions[1] == Question(id="b", prompt="y", options=("a", "b"), answer=1, row=2)
    assert warnings.rows == {"missing context": ["b"]}


def test_jsonl_keeps_fractions_and_line_separators(read):
    text = '\n{"id": 1, "question": "x\u2028y", "options": ["1.50", 1.50]}\n'
    questions, _ = read("q.jsonl", text)
    assert questions == [Question(id="1", prompt="x\u2028y", options=("1.50", "1.50"), row=2)]


@pytest.mark.parametrize("name", ["q.jsonl", "q.parquet"])
def test_letter_columns_with_null_cells(read, name):
    rows = [
        {"id": 0, "prompt": "x", "A": "a", "B": "b", "C": "c", "answer": "C"},
        {"id": 1, "prompt": "y", "A": "a", "B": "b", "C": None, "answer": "A"},
        {"id": 2, "prompt": "z", "A": None, "B": "b", "C": "c", "answer": "B"},
    ]
    questions, warnings = read(name, rows)
    assert [question.options for question in questions] == [("a", "b", "c"), ("a", "b"), ("", "b", "c")]
    assert [question.id for question in questions] == ["0", "1", "2"]
    assert warnings.rows == {"empty option": ["2"]}


def test_generic_parquet_with_answers_that_became_floats(read):
    rows = [
        {"id": "p", "question": "x", "options": ["a", "b", "c"], "answer": 2.0},
        {"id": "q", "question": "y", "options": ["a", "b"], "answer": float("nan")},
    ]
    questions, warnings = read("q.parquet", rows)
    assert [question.answer for question in questions] == [2, None]
    assert [len(question.options) for question in questions] == [3, 2]
    assert warnings.rows == {"no answer": ["q"]}


def test_limit_and_another_context_column(read):
    text = "id,prompt,A,B,passage\n1,x,a,b,p\n1,x,a,b,p\n"
    questions, _ = read("q.csv", text, limit=1, context_column="passage")
    assert [question.context for question in questions] == ["p"]
    with pytest.raises(InputError, match="--limit 0"):
        read("q.csv", text, limit=0)


@pytest.mark.skipif(not KAGGLE200.exists(), reason="the shared data is absent")
def test_the_real_200():
    questions = read_questions(KAGGLE200, warnings=RunWarnings(strict=True))
    assert len(questions) == 200
    assert all(len(question.options) == 5 and question.context for question in questions)


BAD_FILES = {
    "empty file": ("q.csv", "", ("empty",)),
    "only a blank line": ("q.csv", "\n", ("empty",)),
    "no data rows": ("q.csv", "id,prompt,A,B\n", ("no data rows",)),
    "no lines": ("q.jsonl", "\n", ("no data rows",)),
    "wrong encoding": ("q.csv", b"id,prompt,A,B\n1,\xff\xfe\xff,a,b\n", ("line 2", "0xff", "16", "UTF-8")),
    "wrong encoding, JSONL": ("q.jsonl", b'{"id": "\xe9"}\n', ("line 1", "0xe9", "UTF-8")),
    "no id in a row": ("q.csv", "id,prompt,A,B\n,x,a,b\n", ("'id'", "row 1")),
    "no prompt": ("q.csv", "id,A,B\n1,a,b\n", ("'prompt'", "id, A, B")),
    "one option column": ("q.csv", "id,prompt,A\n1,x,a\n", ("two option columns", "id, prompt, A")),
    "a gap": ("q.csv", "id,prompt,A,B,D\n1,x,a,b,d\n", ("'C'", "'D'")),
    "a column twice": ("q.csv", "id,prompt,A,B,A\n1,x,a,b,d\n", ("'A'", "twice")),
    "an empty id": ("q.csv", "id,prompt,A,B\n,x,a,b\n", ("row 1", "'id'")),
    "duplicate id": (
        "q.csv",
        "id,prompt,A,B\n1,x,a,b\n2,x,a,b\n1,y,a,b\n",
        ("row 3", "'id'", "'1'", "row 1"),
    ),
    "duplicate id, JSONL": (
        "q.jsonl",
        [{"id": i, "question": "x", "options": ["a", "b"]} for i in (1, "1")],
        ("line 2", "'1'", "line 1"),
    ),
    "unknown letter": (
        "q.csv",
        "id,prompt,A,B,answer\n1,x,a,b,Q\n",
        ("row 1", "'answer'", "'Q'", "A to B"),
    ),
    "a number for a letter": ("q.csv", "id,prompt,A,B,answer\n1,x,a,b,1\n", ("row 1", "'answer'", "'1'")),
    "unknown index": (
        "q.jsonl",
        [{"id": 1, "question": "x", "options": ["a", "b"], "answer": 2}],
        ("line 1", "'answer'", "2", "0 to 1"),
    ),
    "a truth for an answer": (
        "q.jsonl",
        [{"id": 1, "question": "x", "options": ["a", "b"], "answer": True}],
        ("line 1", "'answer'", "True"),
    ),
    "too many cells": ("q.csv", "id,prompt,A,B\n1,x,a,b\n2,x,a,b,c\n", ("row 2", "5 cells", "4")),
    "an open quote": ("q.csv", 'id,prompt,A,B\n1,"x,a,b\n2,y,a,b\n', ("row 1", "CSV")),
    "unsupported suffix": ("q.xlsx", "id\tprompt\n", ("'.xlsx'", ".csv, .parquet or .jsonl")),
    "broken JSON": ("q.jsonl", '{"id": 1, "question": "x", "options": ["a", "b"]}\n{"id": \n', ("line 2",)),
    "not an object": ("q.jsonl", "[1, 2]\n", ("line 1", "list", "object")),
    "a prompt missing in one line": (
        "q.jsonl",
        [{"id": i, key: "x", "options": ["a", "b"]} for i, key in enumerate(["prompt", "text"])],
        ("line 2", "'prompt'"),
    ),
    "one option": (
        "q.jsonl",
        [{"id": 1, "question": "x", "options": ["a"]}],
        ("line 1", "1 option", "2 to 26"),
    ),
    "27 options": ("q.jsonl", [{"id": 1, "question": "x", "options": ["a"] * 27}], ("line 1", "27 option")),
    "options as text": ("q.jsonl", [{"id": 1, "question": "x", "options": "ab"}], ("line 1", "'options'")),
    "an option that is a list": (
        "q.jsonl",
        [{"id": 1, "question": "x", "options": ["a", ["b"]]}],
        ("line 1", "option B", "list"),
    ),
    "half a surrogate": (
        "q.jsonl",
        '{"id": 1, "question": "\\ud800", "options": ["a", "b"]}',
        ("line 1", "'question'"),
    ),
    "not Parquet": ("q.parquet", b"PAR1 and then nothing", ("Parquet",)),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_in_one_line(case, read):
    name, content, culprits = BAD_FILES[case]
    with pytest.raises(InputError) as refused:
        read(name, content)
    message = str(refused.value)
    assert "\n" not in message
    for culprit in (name, *culprits):
        assert culprit in message


def test_files_that_are_not_there(tmp_path):
    for path, reason in ((tmp_path / "no.csv", "no such file"), (tmp_path, "directory")):
        with pytest.raises(InputError, match=reason):
            read_questions(path, warnings=RunWarnings())


def test_an_absent_context_column_is_refused_only_when_asked_for(read):
    text = "id,prompt,A,B\n1,x,a,b\n"
    assert read("q.csv", text)[1].rows == {}
    with pytest.raises(InputError, match=r"--context-column 'passage' .* id, prompt, A, B"):
        read("q.csv", text, context_column="passage")


def test_parquet_columns_are_checked(read):
    with pytest.raises(InputError, match=r"two option columns.*id, prompt, A"):
        read("q.parquet", [{"id": 1, "prompt": "x", "A": "a"}])


ODD_FILES = {
    "empty option": ("id,prompt,A,B,answer\n1,x,a,,B\n2,y,c,d,A\n", ("a", "")),
    "empty option in the middle": ("id,prompt,A,B,C\n1,x,a,,c\n", ("a", "", "c")),
    "empty options only": ("id,prompt,A,B,C\n1,x,a,,\n", ("a", "", "")),
    "empty option that is the answer": ("id,prompt,A,B,C,D,answer\n1,x,a,b,,,C\n", ("a", "b", "")),
    "fewer options than columns": ("id,prompt,A,B,C,D,answer\n1,x,a,b,,,A\n", ("a", "b")),
    "fewer options than columns in a short row": ("id,prompt,A,B,C\n1,x,a,b\n", ("a", "b")),
    "repeated option": ("id,prompt,A,B\n1,x,a,a \n", ("a", "a ")),
    "missing context": ("id,prompt,A,B,context\n1,x,a,b, \n2,x,a,b,c\n", ("a", "b")),
    "no answer": ("id,prompt,A,B,answer\n1,x,a,b,\n2,x,a,b,A\n", ("a", "b")),
    "empty question": ("id,prompt,A,B\n1,,a,b\n", ("a", "b")),
}


@pytest.mark.parametrize("case", ODD_FILES)
def test_odd_rows_are_kept_and_told(case, read):
    text, options = ODD_FILES[case]
    questions, warnings = read("q.csv", text)
    assert questions[0].options == options
    kinds = [kind for kind, ids in warnings.rows.items() if ids == ["1"]]
    assert any(case.startswith(kind) or case.startswith(kind + "s") for kind in kinds)
    with pytest.raises(InputError, match=r"q.csv, row 1: .*'1'"):
        read("q.csv", text, strict=True)


def test_answers_unknown_everywhere_are_not_odd(read):
    questions, warnings = read("q.csv", "id,prompt,A,B,answer\n1,x,a,b,\n2,x,a,b,\n", strict=True)
    assert [question.answer for question in questions] == [None, None]
    assert warnings.rows == {}


TEXTS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(TEXTS, min_size=2, max_size=26), min_size=1, max_size=4))
def test_any_text_comes_back_from_jsonl_and_parquet(rows, read):
    records = [
        {"id": f"{i}", "question": row[-1], "options": row, "answer": len(row) - 1, "context": row[0]}
        for i, row in enumerate(rows)
    ]
    expected = [
        Question(
            id=f"{i}", prompt=row[-1], options=tuple(row), answer=len(row) - 1, context=row[0], row=i + 1
        )
        for i, row in enumerate(rows)
    ]
    assert read("q.jsonl", records)[0] == expected
    assert read("q.parquet", records)[0] == expected
