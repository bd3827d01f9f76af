"""The report in a real browser: filtered, sorted, opened, without an error; what looks like HTML is text.

Skips where there is no Chromium or no playwright.
"""

import pytest

from strata.engine.report.report import leave_report
from strata.engine.results.timeline import Timeline

from ...chromium import drawn_charts, open_report
from .sample_report import RECORD, make_row

ATTACK = '<img src=x onerror="document.title=1">'
NUM_QUESTIONS = 130
MEMBERS = ["small", "big"]


def question(number):
    """Every third one is right, every fifth unanswered; the second stage scored the first forty."""
    best = number % 3
    answer = None if number % 5 == 0 else 0
    scores = [0.0, 0.0, 0.0]
    scores[best] = 0.02 * (number + 1)
    members = {"small": scores, **({"big": scores[::-1]} if number < 40 else {})}
    return make_row(
        f"q{number}",
        scores,
        answer,
        prompt=f"{ATTACK} number {number}?",
        options=("the red fox", "the grey wolf", f"the bear {ATTACK}"),
        context=f"A Fox is red. {ATTACK} Wolves are the grey ones; a wolf howls.",
        members=members,
    )


ROWS = [question(number) for number in range(NUM_QUESTIONS)]


def stage(name, members):
    counts = dict.fromkeys(("num_questions", "num_chosen", "num_reached", "num_changed"), 5)
    metrics = {"map_at_3": 0.5, "accuracy": 0.4}
    before = {"chosen_before": metrics, "chosen_after": metrics}
    return {"name": name, "members": members, "seconds": 1.0, "metrics": metrics} | counts | before


def record():
    stages = [stage("first", ["small"]), stage("second", ["big"])]
    config = {"config": "cascade.yaml", "pipeline": {"members": {name: {} for name in MEMBERS}}}
    return RECORD | {
        "run_info": {"config": config},
        "measured": RECORD["measured"] | {"stages": stages},
    }


def timeline():
    found = Timeline()
    track = found.begin("small")
    for layer in range(3):
        track.note("read", group=0, layer=layer, device="disk", started=found.started + layer, seconds=0.5)
        track.note("compute", group=0, layer=layer, device="cpu", started=found.started + layer, seconds=1.0)
    return found


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A page that shows the report, and what its console said."""
    out = tmp_path_factory.mktemp("out")
    leave_report(out, record(), ROWS, timeline())
    with open_report(out / "report.html") as shown:
        yield shown


@pytest.fixture
def page(opened):
    """The page with nothing filtered."""
    shown, _ = opened
    shown.click("text=clear")
    shown.select_option("#sort", "file order")
    return shown


def listed(page):
    return page.locator("#list .id").all_inner_texts()


def ids(wanted):
    return [row.question.id for row in ROWS if wanted(row)]


def is_right(row):
    return row.question.answer is not None and row.order[0] == row.question.answer


def test_all_figures_are_drawn(page):
    names = ("margins", "probabilities", "reliability", "positions", "agreement", "stages", "timeline")
    assert drawn_charts(page) == [[f"plot-{name}", True] for name in names]


def test_the_first_hundred_are_listed_and_more_on_request(page):
    assert listed(page) == [row.question.id for row in ROWS[:100]]
    assert page.inner_text("#count") == "130 of 130"
    page.click("#more")
    assert listed(page) == [row.question.id for row in ROWS]
    assert not page.is_visible("#more")


@pytest.mark.parametrize("text", ["q17", "NUMBER 117?"])
def test_filter_by_id_and_text(text, page):
    page.fill("#find", text)
    assert listed(page) == ids(
        lambda row: text.lower() in f"{row.question.id}\n{row.question.prompt}".lower()
    )


@pytest.mark.parametrize("verdict", ["right", "wrong", "unknown"])
def test_filter_by_verdict(verdict, page):
    page.select_option("#verdict", verdict)
    wanted = {
        "right": is_right,
        "wrong": lambda row: row.question.answer is not None and not is_right(row),
        "unknown": lambda row: row.question.answer is None,
    }
    assert listed(page) == ids(wanted[verdict])[:100]


def test_filter_by_margin(page):
    page.fill("#least", "0.2")
    page.fill("#most", "0.3")
    assert listed(page) == ids(lambda row: 0.2 <= row.margin <= 0.3)
    assert listed(page) != []


def test_filter_by_stage(page):
    page.select_option("#stage", label="second")
    assert listed(page) == [f"q{number}" for number in range(40)]


def test_sort_by_margin(page):
    page.select_option("#sort", "surest first")
    assert listed(page) == [row.question.id for row in sorted(ROWS, key=lambda row: -row.margin)][:100]
    page.select_option("#sort", "least sure first")
    assert listed(page) == [row.question.id for row in sorted(ROWS, key=lambda row: row.margin)][:100]


def test_nothing_found(page):
    page.fill("#find", "no question says this")
    assert listed(page) == []
    assert page.inner_text("#count") == "0 of 130"


def test_an_opened_question_shows_options_members_and_answer(page):
    page.fill("#find", "q7")
    page.click("#list button >> nth=0")
    detail = page.inner_text("#detail")
    assert f"{ATTACK} number 7?" in detail
    assert "wrong" in detail
    assert "stage second" in detail
    # Best first: number 7 has option B on top; A is the answer.
    assert page.locator(".option .text b").all_inner_texts() == ["B", "A", "C"]
    assert page.locator(".option.answer b").all_inner_texts() == ["A"]
    assert page.locator(".option .num").all_inner_texts() == [
        f"{ROWS[7].probabilities[option]:.3f}" for option in ROWS[7].order
    ]
    rows = page.locator("#detail tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [
        ["small", "0.000", "0.160", "0.000"],
        ["big", "0.000", "0.160", "0.000"],
    ]


def test_words_of_the_chosen_option_are_marked_and_those_of_the_answer_underlined(page):
    page.fill("#find", "q7")
    page.click("#list button >> nth=0")
    # Of "the grey wolf": words that all options have, such as "the", tell nothing.
    assert page.locator("mark.of-option").all_inner_texts() == ["grey", "wolf"]
    assert page.locator("mark.of-answer").all_inner_texts() == ["Fox", "red"]
    page.click(".option.answer")
    assert page.locator("mark.of-option").all_inner_texts() == ["Fox", "red"]


def test_html_in_texts_is_shown_as_text(page):
    page.fill("#find", "q8")
    page.click("#list button >> nth=0")
    assert ATTACK in page.inner_text("#detail h3")
    assert ATTACK in page.inner_text("#detail .context")
    assert ATTACK in page.inner_text(".options")
    assert page.locator("#browser img").count() == 0
    assert page.title() == "cascade.yaml - strata report"


def test_a_bar_of_margins_shows_its_questions(page):
    page.evaluate(
        "document.getElementById('plot-margins').emit('plotly_click', {points: [{customdata: [0.1, 0.15]}]})"
    )
    assert listed(page) == ids(lambda row: 0.1 <= row.margin <= 0.15)


def test_the_theme_changes_page_and_charts(page):
    def colours():
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " document.getElementById('plot-margins').layout.font.color]"
        )

    page.click("#theme")
    light = colours()
    page.click("#theme")
    page.wait_for_function(
        f"document.getElementById('plot-margins').layout.font.color != '{light[1]}'", timeout=60_000
    )
    assert page.inner_text("#theme") == "theme: dark"
    assert colours()[0] != light[0]
    page.click("#theme")


def test_nothing_was_said_on_the_console_and_nothing_fetched(opened):
    _, said = opened
    assert [text for text in said if not text.startswith(("blob:", "data:"))] == []
