"""Files of texts: the columns that are read, how labels are told, and labels' own columns."""

import json

import numpy as np
import pytest

from strata.engine.questions.text_file import read_label_columns, read_texts
from strata.engine.types import InputError, Question, RunWarnings

LABELS = ("sea", "hill", "7")


@pytest.fixture
def read(tmp_path):
    """`read(name, content)` -> (questions, warnings)."""

    def run(name, content, labels=LABELS, **settings):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        warnings = RunWarnings()
        return read_texts(path, labels, warnings=warnings, **settings), warnings

    return run


def test_csv_with_everything(read):
    options = json.dumps(["hill", "7"]).replace('"', '""')
    text = f'id,text,label,options\n07,"a, b",hill,\n8,c,,"{options}"\n9,d,0,\n10,e,7,"{options}"\n'
    questions, warnings = read("t.csv", text)
    whole = {"options": LABELS, "is_text": True}
    part = whole | {"options": ("hill", "7")}
    assert questions == [
        Question(id="07", prompt="a, b", answer=1, row=1, **whole),
        Question(id="8", prompt="c", answer=None, row=2, **part),
        Question(id="9", prompt="d", answer=0, row=3, **whole),
        # A name goes before an id.
        Question(id="10", prompt="e", answer=1, row=4, **part),
    ]
    assert warnings.rows == {"no label": ["8"]}


def test_pairs_and_ids_of_rows(read):
    questions, _ = read("t.jsonl", '{"text_a": "a", "text_b": "b"}\n\n{"text_a": "c"}\n')
    assert [(one.id, one.prompt, one.context, one.row) for one in questions] == [
        ("1", "a", "b", 1),
        ("3", "c", "", 3),
    ]


def test_a_prompt_with_the_column_of_its_context(read):
    text = '{"id": 1, "prompt": "a", "page": "b", "answer": "sea"}\n'
    questions, _ = read("t.jsonl", text, context_column="page")
    assert (questions[0].context, questions[0].answer) == ("b", 0)
    with pytest.raises(InputError, match="--context-column 'paeg' is not a column"):
        read("t.jsonl", text, context_column="paeg")


REFUSED = [
    (
        "text,label\nx,lake\n",
        "row 1, column 'label': 'lake' is no label; .*'sea', 'hill', '7', or an id from 0 to 2",
    ),
    ("text,label\nx,3\n", "column 'label': '3' is no label"),
    (
        'text,label,options\nx,sea,"[""hill"", ""7""]"\n',
        "'sea' is not one of the row's options; .*'hill', '7'",
    ),
    ('text,options\nx,"[""hill"", ""hill""]"\n', "expected two labels or more, each once"),
    ("text,options\nx,[1]\n", "expected a list of names of labels"),
    ("text,options\nx,{\n", "column 'options': cannot be read as JSON"),
    ("id,text\n1,x\n1,y\n", "row 2, column 'id': duplicate id '1'"),
    ("id,text\n,x\n", "column 'id': no id"),
    ("id,title\n1,x\n", "column 'text' is missing; .* found columns id, title"),
    ("id,text\n", "no data rows"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(content, message, read):
    with pytest.raises(InputError, match=message) as error:
        read("t.csv", content)
    assert str(error.value).count("\n") == 0


def test_columns_of_the_labels(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,text,hill,sea,7\na,x,1,3,0\nb,y,0.5,0.25,0.25\n")
    found = read_label_columns(path, LABELS)
    np.testing.assert_allclose(found["a"], [0.75, 0.25, 0])
    np.testing.assert_allclose(found["b"], [0.25, 0.5, 0.25])
    assert read_label_columns(path, (*LABELS, "lake")) is None
    for cells in ("0,0,0", "-1,1,1", "nan,1,1", "x,1,1"):
        path.write_text(f"id,text,hill,sea,7\na,x,{cells}\n")
        with pytest.raises(InputError, match=r"row 1.*expected (a probability|probabilities)"):
            read_label_columns(path, LABELS)
