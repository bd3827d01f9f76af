"""Values in their units, and what the page's head says of a run."""

from pathlib import Path

import pytest

from strata.engine.report.browser import MAX_QUESTIONS, Browser, PageCut, cuts
from strata.engine.report.summary import describe_method, headline, warning_messages
from strata.engine.report.values import file_name, format_value, human_time

from .sample_report import RECORD, make_row


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("x", None, ""),
        ("num_tokens", 1234567, "1,234,567"),
        ("seconds", 0.012345, "12.3 ms"),
        ("sweep_s", 12345.6, "3 h 25 min"),
        ("tok_per_s", 0.5, "0.5"),
        ("weights_bytes", 3 * 2**20, "3.00 MiB"),
        ("weights_bytes", 3 * 2**30, "3.00 GiB"),
        ("roofline_fraction", 0.5, "50.0%"),
        ("is_resident", True, "True"),
        ("devices", ["cpu", "cpu"], "cpu, cpu"),
    ],
)
def test_values_are_shown_in_their_unit(name, value, text):
    assert format_value(name, value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.42, "0.42 s"), (9.99, "10 s"), (59.6, "1 min 00 s"), (432, "7 min 12 s")],
)
def test_times_as_people_say_them(seconds, text):
    assert human_time(seconds) == text


def test_no_share_above_all_of_a_quick_roofline():
    measured = RECORD["measured"] | {"roofline_fraction": 1.02}
    record = {"measured": measured, "plan": {"rates": {"rates_from": "measured quickly"}}}
    (figure,) = (figure for figure in headline(record, []) if figure.label == "Tokens/s")
    assert figure.note == "all of the GEMM roofline (measured in a fifth of a second: a rough guide)"


def test_shortened_contexts_are_among_the_warnings():
    measured = {"truncated_questions": 3, "questions_with_context": 9, "truncated_context_tokens": 1234}
    assert warning_messages({"measured": measured}) == [
        "contexts of 3 of 9 question(s) were shortened to fit, by 1,234 tokens in all"
    ]


def test_what_int8_does_is_among_the_warnings():
    check = {"questions": 5, "top1_agreement": 0.6, "margin_rms_error": 0.126, "margin_rms": 0.131}
    (told,) = warning_messages({"measured": {"int8_check": check}})
    assert "same best option on 60%, margins off by 0.126 where they are 0.131" in told


def test_the_head_says_what_was_resolved_not_what_was_asked():
    config = {
        "model": "x/llama",
        "head": "auto",
        "dtype": "auto",
        "adapter": ["y/sciences/"],
        "questions": "q.csv",
    }
    record = {
        "run_info": {"config": config},
        "plan": {"head": "binary", "dtype": "float32", "devices": ["cpu"]},
    }
    assert dict(describe_method(record)) == {
        "model": "llama",
        "adapter": "sciences",
        "head": "binary",
        "dtype": "float32",
        "devices": "cpu",
        "data": "q.csv",
    }


def test_a_pipeline_names_what_all_its_units_resolved():
    members = {"a": {"model": "m/one", "debias": "rotate"}, "b": {"model": "m/two"}}
    plans = [{"head": "letters", "dtype": "float32"}, {"parts": [{"head": "binary", "dtype": "int8"}]}]
    record = {
        "run_info": {"config": {"config": "p.yaml", "pipeline": {"members": members}}},
        "plan": {"units": [{"plan": plan} for plan in plans]},
    }
    found = dict(describe_method(record))
    assert found == {
        "model": "one, two",
        "head": "letters, binary",
        "debias": "rotate",
        "dtype": "float32, int8",
    }


def browser(rows, **further):
    return Browser(**({"record": {}, "scores": rows, "members": ["one"], "contexts": {}} | further))


def test_a_question_has_all_its_contexts_by_name():
    rows = [make_row("1", [1, 2], context="own"), make_row("2", [1, 2])]
    found = browser(rows, contexts={"wiki": ["first", "second"]}).payload(next(cuts(2)))["questions"]
    assert found[0]["contexts"] == [("context", "own"), ("wiki", "first")]
    assert found[1]["contexts"] == [("wiki", "second")]


def test_what_is_cut_is_told():
    rows = [make_row(str(number), [1, 2], context="x" * 50) for number in range(4)]
    cut = PageCut(text_characters=400, context_characters=10, num_questions=3)
    payload = browser(rows).payload(cut)
    assert payload["questions"][0]["contexts"] == [("context", "x" * 10 + " ...")]
    assert payload["told"] == (
        "To keep this page small, 3 long text(s) are cut, contexts at 10 characters and "
        "the first 3 of 4 questions are listed."
    )


def test_scores_that_are_not_finite_have_no_number():
    row = make_row("1", [0.0, float("-inf")])
    (question,) = browser([row]).payload(next(cuts(1)))["questions"]
    assert question["scores"] == [0.0, None]


def test_no_more_are_listed_than_a_browser_sorts():
    assert next(cuts(1_000_000)).num_questions == MAX_QUESTIONS


def test_cuts_end_with_nothing():
    *_, last = cuts(5)
    assert last.num_questions == 0


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("models/llama-70b/", "llama-70b"),
        ("runs/first/adapter", "first/adapter"),
        ("adapter", "adapter"),
        (Path("a/b/best"), "b/best"),
    ],
)
def test_folders_of_plain_names_are_told_by_the_one_above(path, told):
    assert file_name(path) == told
