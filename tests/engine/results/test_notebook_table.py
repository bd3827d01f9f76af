"""Scores in a notebook: what the table says, read back by an HTML parser."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from strata.engine.results.notebook_table import MAX_CHARACTERS, MAX_ROWS, ScoredQuestions
from strata.engine.types import Question, QuestionScores


class Cells(HTMLParser):
    """The texts of a table's cells, row by row, and all tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def scored(number: int, *, answer: int | None = None, prompt: str = "Why?", **settings) -> QuestionScores:
    question = Question(id=str(number), prompt=prompt, options=("a <b>", "c"), answer=answer, **settings)
    return QuestionScores(
        question=question, scores=np.array([0.0, 1.0]), probabilities=np.array([0.25, 0.75])
    )


def test_a_row_a_question():
    html = ScoredQuestions([scored(1, answer=1), scored(2, answer=0), scored(3)])._repr_html_()
    header, *rows = Cells(html.partition("<p>")[0]).rows
    assert header == ["id", "question", "best", "probability", ""]
    assert rows == [
        ["1", "Why?", "B: c", "0.750", "\u2713"],
        ["2", "Why?", "B: c", "0.750", "\u2717"],
        ["3", "Why?", "B: c", "0.750", ""],
    ]
    assert "3 question(s), 1 of 2 answered ones right" in html


def test_texts_are_no_markup():
    html = ScoredQuestions([scored(1, prompt="<script>alert(1)</script> & co")])._repr_html_()
    cells = Cells(html.partition("<p>")[0])
    assert "script" not in cells.tags
    assert cells.rows[1][1] == "<script>alert(1)</script> & co"


def test_of_a_text_the_label_is_shown():
    html = ScoredQuestions([scored(1, is_text=True)])._repr_html_()
    assert Cells(html).rows[1][2] == "c"


def test_long_tables_and_texts_are_cut():
    html = ScoredQuestions(
        [scored(number, prompt="x" * 1000) for number in range(MAX_ROWS + 7)]
    )._repr_html_()
    rows = Cells(html.partition("<p>")[0]).rows
    assert len(rows) == 1 + MAX_ROWS
    assert {len(row[1]) for row in rows[1:]} == {MAX_CHARACTERS}
    assert f"{MAX_ROWS + 7} question(s); the first {MAX_ROWS} are shown" in html


def test_it_is_a_list():
    rows = ScoredQuestions([scored(1), scored(2)])
    assert isinstance(rows, list)
    assert [row.question.id for row in rows] == ["1", "2"]
