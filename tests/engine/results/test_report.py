"""The report page: self-contained, escaped, complete, and never stopped by an absent part."""

import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from strata.engine.results.report import MAX_PROMPT_CHARACTERS, format_value, render_report, write_report
from strata.engine.results.run_record import RunRecord
from strata.engine.types import Question, QuestionScores

RECORD = {
    "status": "done",
    "error": None,
    "run_info": {
        "commit": "c0ffee",
        "torch": "2.13.0",
        "machine": {"cpu": "A processor", "gpus": [{"name": "Tesla T4", "memory_gib": None}]},
        "config": {"model": "models/llama-70b", "head": "yes-no", "devices": ["cpu", "cpu"]},
    },
    "plan": {
        "bytes_read": 2000,
        "num_groups": 3,
        "peak_bytes": {"cpu": 2**30, "host": 2**31},
        "predicted_only": 1,
    },
    "measured": {
        "bytes_read": 2000,
        "peak_bytes": {"cpu": 3 * 2**29, "host": None},
        "seconds": 12.5,
        "seconds_by_phase": {"read": 2.0, "sweep": 6.0, "nothing": 0.0},
        "tok_per_s": 4321.0,
        "roofline_fraction": 0.873,
    },
    "metrics": {
        "num_answered": 2,
        "map_at_3": 0.6125,
        "accuracy": 0.5,
        "heuristics": {"uniform_map_at_3": 0.36667, "longest_option_map_at_3": 0.5825},
    },
    "warnings": {
        "rows": {"empty option": {"count": 7, "ids": list("abcdefg")}},
        "messages": ["fell back to fp32"],
    },
}


class Page(HTMLParser):
    """Collects tags with their attributes, table rows as lists of cell texts, and checks that tags close."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.open_tags = [], [], []
        self.feed(html)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open_tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if "td" in self.open_tags or "th" in self.open_tags:
            self.rows[-1][-1] += data


def make_row(question_id, scores, answer=None, prompt="What is it?", options=None):
    values = np.array(scores, dtype=float)
    question = Question(
        id=question_id, prompt=prompt, options=options or tuple("abcdefgh"[: len(scores)]), answer=answer
    )
    return QuestionScores(
        question=question, scores=values, probabilities=np.exp(values) / np.exp(values).sum()
    )


def many_rows(count):
    return [make_row(f"q{number}", [number / count, 0.0], 0) for number in range(count)]


def test_headline_and_sections():
    page = render_report(RECORD, [make_row("1", [1, 2])])
    for text in ("llama-70b", "head yes-no, devices cpu,cpu", "0.613", "12.5", "4,321", "87.3%", "c0ffee"):
        assert text in page
    assert "uniform guess 0.367, longest option 0.583" in page
    assert "2 with a known answer" in page
    assert "fell back to fp32" in page
    assert "Tesla T4<" in page
    assert ["empty option", "7", "a, b, c, d, e"] in Page(page).rows


def test_plan_beside_measurement_for_keys_of_both():
    rows = [row for row in Page(render_report(RECORD, [])).rows if len(row) == 4]
    assert ["bytes_read", "2,000", "2,000", "1.00"] in rows
    assert ["peak_bytes.cpu", "1.00 GiB", "1.50 GiB", "1.50"] in rows
    names = {row[0] for row in rows}
    assert names.isdisjoint({"num_groups", "predicted_only", "peak_bytes.host", "seconds"})


def test_phases_are_bars_in_proportion_longest_first():
    page = Page(render_report(RECORD, []))
    assert [attributes["style"] for tag, attributes in page.tags if attributes.get("class") == "bar"] == [
        "width: 75.0%",
        "width: 25.0%",
    ]
    assert [row[0] for row in page.rows if row[-1] in ("75.0%", "25.0%")] == ["sweep", "read"]


def test_a_question_row():
    (row,) = (
        row for row in Page(render_report({}, [make_row("007", [0, 3, 1, 2], 2)])).rows if row[0] == "007"
    )
    # softmax of 0..3 is 0.032 0.087 0.237 0.644
    assert [" ".join(cell.split()) for cell in row] == [
        "007",
        "What is it?",
        "B 0.644D 0.237C 0.087",
        "C rank 3",
        "0.407",
    ]


def test_answer_unknown_and_missed():
    rows = [make_row("n", [3, 2, 1, 0]), make_row("m", [3, 2, 1, 0], 3)]
    found = {row[0]: row[3] for row in Page(render_report({}, rows)).rows if row[0] in "nm"}
    assert found == {"n": "", "m": "D missed"}


def test_first_and_least_certain_questions():
    scores = many_rows(50)[::-1]
    page = render_report(RECORD, scores)
    first, unsure = page.split("Least certain 20 questions")
    first = first.split("First 20 questions")[1]
    assert re.findall(r"<td>(q\d+)</td>", first) == [f"q{number}" for number in range(49, 29, -1)]
    assert re.findall(r"<td>(q\d+)</td>", unsure) == [f"q{number}" for number in range(20)]


def test_few_questions_are_listed_once():
    ids = re.findall(r"<td>(q\d+)</td>", render_report(RECORD, many_rows(20)))
    assert ids == [f"q{number}" for number in range(20)]


def test_text_of_the_user_is_escaped():
    attack = "<script>alert(1)</script>"
    row = make_row(
        attack, [1, 2], prompt=f"Is {attack} & 1 < 2?", options=('"><img src=x onerror=a()>', attack)
    )
    record = {
        "run_info": {"config": {"model": attack + "x", "head": attack}, "command": attack},
        "warnings": {"rows": {attack: {"count": 1, "ids": [attack]}}, "messages": [attack]},
        "measured": {"seconds_by_phase": {attack: 1.0}, attack: attack},
        "plan": {attack: attack},
        "status": "failed",
        "error": {"type": attack, "message": attack},
    }
    html = render_report(record, [row])
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "&lt;script&gt;" in html
    assert attack in next(cells[1] for cells in page.rows if cells[0] == attack and len(cells) == 5)


def test_page_is_self_contained_and_follows_the_colour_scheme():
    html = render_report(RECORD, many_rows(30))
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "script", "img", "iframe", "object"})
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)
    assert not re.search(r"https?:|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert html.isascii()


def test_long_and_many_line_prompts_are_shortened():
    page = Page(render_report({}, [make_row("1", [1, 2], prompt="two\n\n lines " + "x" * 5000)]))
    (cell,) = (row[1] for row in page.rows if row[0] == "1")
    assert cell.startswith("two lines xxx")
    assert cell.endswith("...")
    assert len(cell) == MAX_PROMPT_CHARACTERS


@pytest.mark.parametrize("absent", [*RECORD, "everything", "null"])
def test_absent_parts_leave_their_section_out(absent):
    record = {key: value for key, value in RECORD.items() if key != absent}
    if absent == "everything":
        record = {}
    if absent == "null":
        record = dict.fromkeys(RECORD)
    html = render_report(record, many_rows(2))
    Page(html)
    assert "q1" in html
    headings = {
        "plan": "Plan and measurement",
        "measured": "Seconds by phase",
        "warnings": "Warnings",
        "metrics": "MAP@3",
        "run_info": "How to repeat this run",
    }
    for key, heading in headings.items():
        needed = ("plan", "measured") if key == "plan" else (key,)
        assert (f">{heading}<" in html) == all(record.get(part) for part in needed)


def test_a_failed_run_says_so():
    html = render_report(
        {"status": "failed", "error": {"type": "RuntimeError", "message": "worker died"}}, []
    )
    assert "Run failed." in html
    assert "RuntimeError: worker died" in html
    assert "Run running" not in render_report({"status": "running"}, [])


def test_written_from_a_real_record_even_with_a_lone_surrogate(tmp_path):
    with RunRecord(tmp_path / "run.json", {"model": tmp_path / "tiny"}) as record:
        record.begin()
        write_report(
            tmp_path / "report.html", record.as_dict(), [make_row("1", [1, 2], prompt="odd \ud800 text")]
        )
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>tiny</h1>" in html
    assert "odd ? text" in html
    assert sorted(os.listdir(tmp_path)) == ["report.html", "run.json"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("x", None, ""),
        ("num_tokens", 1234567, "1,234,567"),
        ("seconds", 0.012345, "0.01235"),
        ("seconds", 12345.6, "12,346"),
        ("weights_bytes", 3 * 2**20, "3.00 MiB"),
        ("weights_bytes", 3 * 2**30, "3.00 GiB"),
        ("roofline_fraction", 0.5, "50.0%"),
        ("is_resident", True, "True"),
        ("devices", ["cpu", "cpu"], "cpu,cpu"),
    ],
)
def test_values_are_shown_in_their_unit(name, value, text):
    assert format_value(name, value) == text
