"""Question files as people have them: read as the plain file would be, with a line that says how."""

from __future__ import annotations

import gzip
import io
import zipfile
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strata.engine.questions.question_file import read_questions
from strata.engine.types import InputError, Question, RunWarnings

PLAIN = "id,prompt,A,B,C,answer,context\n1,Why?,a,b,c,B,It is.\n2,How?,d,e,f,C,So.\n"
EXPECTED = [
    Question(id="1", prompt="Why?", options=("a", "b", "c"), answer=1, context="It is.", row=1),
    Question(id="2", prompt="How?", options=("d", "e", "f"), answer=2, context="So.", row=2),
]


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "."), text)
    return buffer.getvalue()


def read(tmp_path, name: str, content: str | bytes, **settings):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    warnings = RunWarnings()
    return read_questions(path, warnings=warnings, **settings), warnings


VARIANTS = {
    "plain": ("q.csv", PLAIN, ""),
    "gzip": ("q.csv.gz", gzip.compress(PLAIN.encode()), "gzip"),
    "zip": ("q.zip", zipped(test__csv=PLAIN), "zip of test.csv"),
    "tsv": ("q.tsv", PLAIN.replace(",", "\t"), "tab-separated"),
    "tabs": ("q.csv", PLAIN.replace(",", "\t"), "tab-separated"),
    "semicolons": ("q.csv", PLAIN.replace(",", ";"), "separated by ';'"),
    "utf-16": ("q.csv", PLAIN.encode("utf-16"), "UTF-16"),
    "capital names": ("q.csv", PLAIN.replace("answer,context", "Answer, CONTEXT"), "'Answer' as 'answer'"),
    "question": ("q.csv", PLAIN.replace("id,prompt", "ID,Question"), "'Question' as 'question'"),
    "lower case letters": ("q.csv", PLAIN.replace("A,B,C", "a,b,c"), "'a' to 'c'"),
    "option_1": ("q.csv", PLAIN.replace("A,B,C", "option_1,option_2,option_3"), "'option_1' to 'option_3'"),
    "option0": ("q.csv", PLAIN.replace("A,B,C", "option0,option1,option2"), "'option0' to 'option2'"),
    "Choice A": ("q.csv", PLAIN.replace("A,B,C", "Choice A,Choice B,Choice C"), "'Choice A'"),
    "opa": ("q.csv", PLAIN.replace("A,B,C", "opa,opb,opc"), "'opa'"),
    "index": ("q.csv", PLAIN.replace("id,", ","), "index column"),
    "unnamed index": ("q.csv", PLAIN.replace("id,", "Unnamed: 0,"), "index column"),
    "float ids": ("q.csv", PLAIN.replace("\n1,", "\n1.0,").replace("\n2,", "\n2.0,"), "whole numbers"),
    "answers from 0": (
        "q.csv",
        PLAIN.replace(",B,I", ",1,I").replace(",C,S", ",2,S") + "3,x,a,b,c,0,\n",
        "from 0",
    ),
    "answers from 1": ("q.csv", PLAIN.replace(",B,I", ",2,I").replace(",C,S", ",3,S"), "from 1"),
    "answers as 1.0": ("q.csv", PLAIN.replace(",B,I", ",2.0,I").replace(",C,S", ",3.0,S"), "from 1"),
    "answers as texts": ("q.csv", PLAIN.replace(",B,I", ",b,I").replace(",C,S", ",f,S"), "texts"),
    "numbers of numbered columns": (
        "q.csv",
        PLAIN.replace("A,B,C", "option_0,option_1,option_2").replace(",B,I", ",1,I").replace(",C,S", ",2,S"),
        "from 0",
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_read_as_the_plain_file(name, tmp_path):
    file, content, note = VARIANTS[name]
    questions, warnings = read(tmp_path, file, content)
    assert questions[:2] == EXPECTED
    said = [line for line in warnings.messages if "read as" in line]
    assert len(said) == (1 if note else 0)
    assert note in "".join(said)
    assert "\n" not in "".join(said)


def test_file_capital_answer_context(tmp_path):
    text = "id,prompt,A,B,C,D,Answer,Context\n1,What?,a,b,c,d,A,The cat sat on a mat.\n"
    (question,), warnings = read(tmp_path, "t.csv", text)
    assert (question.answer, question.context) == (0, "The cat sat on a mat.")
    assert len(warnings.messages) == 1


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ("label,passage", ("'label'", "'passage'")),
        ("answer,context,Answer,Context", ("'Answer'", "'Context'")),
        ("answrer,Contxt", ("'answrer'", "'Contxt'")),
    ],
)
def test_columns_that_look_meant_and_are_not_used_are_named(columns, named, tmp_path):
    cells = {"label": "1", "passage": "x", "answer": "A", "context": "c", "Answer": "B", "Context": "d"}
    cells |= {"answrer": "A", "Contxt": "c", "word": "y"}
    columns = f"{columns},word"
    text = f"id,prompt,A,B,{columns}\n1,Why?,a,b,{','.join(cells[name] for name in columns.split(','))}\n"
    _, warnings = read(tmp_path, "q.csv", text)
    assert ["is not used" in line for line in warnings.messages] == [True, True]
    assert all(name in line for name, line in zip(named, warnings.messages, strict=True))
    assert read(tmp_path, "q.csv", text, context_column="prompt")[1].messages == warnings.messages[:1]


def test_letters_win_over_texts_that_are_letters(tmp_path):
    (question,), _ = read(tmp_path, "q.csv", "id,prompt,A,B,answer\n1,Which base?,B,A,A\n")
    assert question.answer == 0


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_numbers_beside_listed_options_are_indexes(suffix, tmp_path):
    rows = [{"id": 1.0, "question": "x", "options": ["5", "1", "7"], "answer": 1}]
    path = tmp_path / f"q.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(str(rows[0]).replace("'", '"'))
    (question,) = read_questions(path, warnings=RunWarnings())
    assert (question.id, question.answer) == ("1", 1)


def test_parquet_values_become_text(tmp_path):
    columns = {
        "id": pa.array([1.0, 2.0]),
        "prompt": pa.array(["x", "y"]).dictionary_encode(),
        "A": pa.array([0.1, 2.5], pa.float32()),
        "B": pa.array([Decimal("1.50"), Decimal("2.00")]),
        "C": pa.array([0, 1], pa.timestamp("s")),
        "D": pa.array([0, 1], pa.date32()),
        "E": pa.array([60, 1], pa.duration("s")),
        "answer": pa.array([5.0, 1.0], pa.float32()),
    }
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    first, second = read_questions(tmp_path / "q.parquet", warnings=RunWarnings())
    assert (first.id, first.answer, second.answer) == ("1", 4, 0)
    assert first.options == ("0.1", "1.50", "1970-01-01 00:00:00", "1970-01-01", "0:01:00")


FAR = 2**62
ODD_VALUES = {
    "p_ts": pa.array([0, FAR], pa.timestamp("ms")),
    "p_ts_us": pa.array([0, FAR], pa.timestamp("us")),
    "p_date": pa.array([0, 2**31 - 1], pa.date32()),
    "p_dur": pa.array([0, FAR], pa.duration("s")),
}


@pytest.mark.parametrize("name", ODD_VALUES)
def test_parquet_values_out_of_range_are_refused_where_they_are_used(name, tmp_path):
    good = {"id": ["1", "2"], "prompt": ["x", "y"], "A": ["a", "b"], "B": ["c", "d"]}
    pq.write_table(pa.table(good | {"created": ODD_VALUES[name]}), tmp_path / "unused.parquet")
    assert len(read_questions(tmp_path / "unused.parquet", warnings=RunWarnings())) == 2
    pq.write_table(pa.table(good | {"B": ODD_VALUES[name]}), tmp_path / "q.parquet")
    with pytest.raises(InputError, match=r"q.parquet, row 2, option B: a .*out of range") as refused:
        read_questions(tmp_path / "q.parquet", warnings=RunWarnings())
    assert "\n" not in str(refused.value)


LONG = 10_000_000
REFUSED = {
    "q_10mb": (
        "q.csv",
        f"id,prompt,A,B\n1,{'so it is ' * (LONG // 9)},a,b\n",
        "row 1, column 'prompt': 9,999",
    ),
    "q_10mb_oneword": ("q.csv", f"id,prompt,A,B\n1,{'x' * LONG},a,b\n", "row 1, column 'prompt': 10,000,000"),
    "q_10mb_option": ("q.csv", f"id,prompt,A,B\n1,x,{'y' * LONG},b\n", "row 1, option A: 10,000,000"),
    "q_100k_cols": ("q.csv", ",".join(map(str, range(100_000))) + "\n", "100,000 columns"),
    "q_100k_keys": ("q.jsonl", "{" + ",".join(f'"{n}": 1' for n in range(100_000)) + "}", "100,000 columns"),
    "q_gzip_bomb": ("q.csv.gz", gzip.compress(b"\0" * (80 << 20), 9), "MiB"),
    "q_gzip_cut": ("q.csv.gz", gzip.compress(PLAIN.encode())[:-12], "not a complete gz file"),
    "q_zip_of_two": ("q.zip", zipped(a__csv=PLAIN, b__csv=PLAIN), "2 files"),
    "q_zip_broken": ("q.zip", b"PK\x03\x04 and nothing", "not a complete zip file"),
    "q_zip_of_other": ("q.zip", zipped(a__xlsx=PLAIN), "'.xlsx'"),
    "q_utf16_cut": ("q.csv", PLAIN.encode("utf-16")[:-1], "UTF-16"),
    "q_two_answers": ("q.csv", PLAIN.replace("answer,context", "Answer,ANSWER"), "expected one 'answer'"),
    "q_unclear_numbers": ("q.csv", "id,prompt,A,B,C,answer\n1,x,a,b,c,1\n2,x,a,b,c,2\n", "from 0 or from 1"),
    "q_number_or_text": ("q.csv", "id,prompt,A,B,C,answer\n1,x,3,1,2,3\n2,x,3,1,2,1\n", "text or its number"),
    "q_text_of_two": ("q.csv", "id,prompt,A,B,answer\n1,x,yes,yes,yes\n", "unknown answer 'yes'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_beyond_limits_are_refused_in_one_line(name, tmp_path):
    file, content, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as refused:
        read(tmp_path, file, content)
    message = str(refused.value)
    assert file in message
    assert "\n" not in message
    assert len(message) < 500


def test_a_long_context_is_cut_and_told(tmp_path):
    text = f"id,prompt,A,B,context\n1,x,a,b,{'so it is ' * 200_000}\n"
    (question,), warnings = read(tmp_path, "q.csv", text)
    assert len(question.context) == 1_000_000
    assert warnings.rows == {"context cut at 1,000,000 characters": ["1"]}


WITHOUT_IDS = [
    ("q.csv", "prompt,A,B\nx,a,b\ny,c,d\n"),
    ("q.jsonl", '{"question": "x", "options": ["a", "b"]}\n{"question": "y", "options": ["c", "d"]}\n'),
]


@pytest.mark.parametrize(("file", "content"), WITHOUT_IDS)
def test_files_without_ids_get_row_numbers_and_say_so(file, content, tmp_path):
    questions, warnings = read(tmp_path, file, content)
    assert [question.id for question in questions] == ["1", "2"]
    (said,) = warnings.messages
    assert "row numbers for ids" in said
    assert "--id-column" in said


@pytest.mark.parametrize("column", ["key", "Key"])
def test_ids_come_from_the_column_that_is_named(column, tmp_path):
    text = f"id,{column},prompt,A,B\n1,k7,x,a,b\n1,k8,y,c,d\n"
    questions, warnings = read(tmp_path, "q.csv", text, id_column=column)
    assert [question.id for question in questions] == ["k7", "k8"]
    assert warnings.messages == []


def test_an_id_column_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"q.csv: --id-column 'key' is not a column .* found columns id, prom"
    ):
        read(tmp_path, "q.csv", PLAIN, id_column="key")


def test_one_row_without_an_id_is_no_file_without_ids(tmp_path):
    text = '{"id": 4, "question": "x", "options": ["a", "b"]}\n{"question": "y", "options": ["c", "d"]}\n'
    with pytest.raises(InputError, match="line 2, column 'id': no id"):
        read(tmp_path, "q.jsonl", text)
