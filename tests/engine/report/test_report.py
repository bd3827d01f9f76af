"""The report page: self-contained, escaped, below its limit, and never stopped by an absent part."""

import os
import random
import re

import pytest

from strata.engine.report import packed
from strata.engine.report.report import MAX_BYTES, MAX_PROMPT_CHARACTERS, leave_report, render_report
from strata.engine.results.run_record import RunRecord
from strata.engine.results.timeline import Timeline

from .sample_report import RECORD, Page, make_row, many_rows, unpack, unpack_json

ATTACK = "</script><script>alert(1)</script>"


def test_headline_and_sections():
    page = render_report(RECORD, [make_row("1", [1, 2])])
    for text in ("llama-70b", "0.613", ">12 s<", "4,321", "87% of the GEMM roofline", "c0ffee"):
        assert text in page
    assert "<dt>head</dt><dd>yes-no</dd>" in page
    assert "<dt>devices</dt><dd>cpu</dd>" in page
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


def test_phases_are_meters_in_proportion_longest_first():
    page = Page(render_report(RECORD, []))
    assert [attributes["value"] for tag, attributes in page.tags if tag == "meter"] == ["75.0", "25.0"]
    assert [row[0] for row in page.rows if row[-1] in ("75.0%", "25.0%")] == ["sweep", "read"]


def test_a_question_without_scripts():
    row = make_row("007", [0, 3, 1, 2], 2)
    (cells,) = (cells for cells in Page(render_report({}, [row])).rows if cells[0] == "007")
    # softmax of 0..3 is 0.032 0.087 0.237 0.644
    assert [" ".join(cell.split()) for cell in cells] == [
        "007",
        "What is it?",
        "B 0.644 D 0.237 C 0.087",
        "C rank 3",
        "0.407",
    ]


def test_answer_unknown_and_missed_without_scripts():
    rows = [make_row("n", [3, 2, 1, 0]), make_row("m", [3, 2, 1, 0], 3)]
    found = {row[0]: row[3].strip() for row in Page(render_report({}, rows)).rows if row[0] in ("n", "m")}
    assert found == {"n": "", "m": "D missed"}


def test_first_and_least_certain_questions_without_scripts():
    page = render_report(RECORD, many_rows(50)[::-1])
    first, unsure = page.split("Least certain 20 questions")
    first = first.split("First 20 questions")[1]
    assert re.findall(r"<td>(q\d+)</td>", first) == [f"q{number}" for number in range(49, 29, -1)]
    assert re.findall(r"<td>(q\d+)</td>", unsure) == [f"q{number}" for number in range(20)]


def test_text_of_the_user_is_escaped():
    row = make_row(
        ATTACK, [1, 2], prompt=f"Is {ATTACK} & 1 < 2?", options=('"><img src=x onerror=a()>', ATTACK)
    )
    record = {
        "run_info": {
            "config": {"model": ATTACK + "x", "head": ATTACK, "questions": ATTACK},
            "command": ATTACK,
        },
        "warnings": {"rows": {ATTACK: {"count": 1, "ids": [ATTACK]}}, "messages": [ATTACK]},
        "measured": {"seconds_by_phase": {ATTACK: 1.0}, ATTACK: ATTACK, "stages": [stage_named(ATTACK)] * 2},
        "plan": {ATTACK: ATTACK, "members": [ATTACK, "b"]},
        "status": "failed",
        "error": {"type": ATTACK, "message": ATTACK},
    }
    html = render_report(record, [row], contexts={ATTACK: [ATTACK]})
    page = Page(html)
    plain = Page(render_report({}, [make_row("1", [1, 2])]))
    assert sum(tag == "script" for tag, _ in page.tags) == sum(tag == "script" for tag, _ in plain.tags)
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "alert(1)</script>" not in html
    (question,) = unpack_json(html, "questions")["questions"]
    assert question["prompt"] == f"Is {ATTACK} & 1 < 2?"
    assert question["contexts"] == [[ATTACK, ATTACK]]


def stage_named(name):
    counts = dict.fromkeys(("num_questions", "num_chosen", "num_reached", "num_changed"), 1)
    nothing = dict.fromkeys(("metrics", "chosen_before", "chosen_after"))
    return {"name": name, "members": [name], "seconds": 1.0} | counts | nothing


def test_page_is_self_contained_and_follows_the_colour_scheme():
    html = render_report(RECORD, many_rows(30))
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "img", "iframe", "object"})
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)
    assert not re.search(r"https?:|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert html.isascii()
    assert "default-src 'none'" in html


def test_the_page_brings_plotly():
    # The licence line that plotly.js begins with.
    assert "plotly.js v" in unpack(render_report(RECORD, many_rows(3)), "plotly")[:200]


def test_without_plotly_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setattr("strata.engine.report.page.packed_plotly", lambda: "")
    html = render_report(RECORD, many_rows(3))
    assert "pip install plotly" in html
    assert 'id="plot-margins"' not in html
    assert len(unpack_json(html, "questions")["questions"]) == 3


def test_an_absent_package_is_no_error(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    packed.packed_plotly.cache_clear()
    try:
        assert packed.packed_plotly() == ""
    finally:
        packed.packed_plotly.cache_clear()


def test_long_and_many_line_prompts_are_shortened_without_scripts():
    page = Page(render_report({}, [make_row("1", [1, 2], prompt="two\n\n lines " + "x" * 5000)]))
    (cell,) = (row[1] for row in page.rows if row[0] == "1")
    assert cell.startswith("two lines xxx")
    assert cell.endswith("...")
    assert len(cell) == MAX_PROMPT_CHARACTERS


def random_text(source, num_characters):
    """Letters, and a space for about every sixth."""
    return "".join(source.choices("abcdefghijklmnopqrstuvwxyz     ", k=num_characters))


@pytest.fixture(scope="module")
def big_page():
    """4,000 questions with contexts of 1,500 characters that no compressor knows the words of."""
    source = random.Random(0)
    rows = [
        make_row(
            f"q{number}",
            [source.random() for _ in range(5)],
            number % 5,
            prompt=random_text(source, 120),
            options=tuple(random_text(source, 40) for _ in range(5)),
            context=random_text(source, 1500),
            members={name: [source.random() for _ in range(5)] for name in ("a", "b", "c")},
        )
        for number in range(4000)
    ]
    return render_report(RECORD | {"plan": {"members": ["a", "b", "c"]}}, rows)


def test_thousands_of_questions_with_contexts_stay_below_the_limit(big_page):
    assert len(big_page.encode()) <= MAX_BYTES < 5_000_000
    payload = unpack_json(big_page, "questions")
    assert len(payload["questions"]) == 4000
    assert "long text(s) are cut" in payload["told"]
    assert payload["questions"][-1]["members"].keys() == {"a", "b", "c"}


def test_texts_that_fit_are_not_cut():
    rows = [make_row("1", [1, 2], context="word " * 1000)]
    payload = unpack_json(render_report(RECORD, rows), "questions")
    assert payload["told"] == ""
    assert payload["questions"][0]["contexts"] == [["context", "word " * 1000]]


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
        "measured": "Time by phase",
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
        leave_report(tmp_path, record.as_dict(), [make_row("1", [1, 2], prompt="odd \ud800 text")])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>tiny</h1>" in html
    assert "odd ? text" in html
    assert unpack_json(html, "questions")["questions"][0]["prompt"] == "odd \ud800 text"
    assert sorted(os.listdir(tmp_path)) == ["report.html", "run.json"]


def test_a_timeline_is_left_beside_it(tmp_path):
    timeline = Timeline()
    track = timeline.begin("a")
    track.note("compute", group=0, layer=0, device="cpu", started=timeline.started, seconds=1.0)
    leave_report(tmp_path, RECORD, many_rows(2), timeline)
    assert sorted(os.listdir(tmp_path)) == ["report.html", "timeline.json"]
    html = (tmp_path / "report.html").read_text()
    assert 'id="plot-timeline"' in html
    assert unpack_json(html, "charts")[-1]["data"][0]["y"] == ["compute cpu"]
