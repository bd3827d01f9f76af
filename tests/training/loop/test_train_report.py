"""report.html of a training: what it says, and that a real browser draws its curves without an error."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest

from strata.training.loop.train_report import leave_train_report, render_train_report, smooth, train_charts

from ...chromium import drawn_charts, open_report

ATTACK = '<img src=x onerror="document.title=1">'
STEPS = list(range(1, 41))
HEURISTICS = {"uniform_map_at_3": 0.367, "longest_option_map_at_3": 0.582}
EVALUATIONS = [
    {"step": step, "loss": 1.5 - step / 50, "map_at_3": 0.4 + step / 100, "accuracy": 0.3 + step / 100}
    | {"heuristics": HEURISTICS, "num_examples": 20}
    for step in (0, 20, 40)
]
RECORD = {
    "status": "done",
    "error": None,
    "run_info": {"config": {"model": f"models/{ATTACK}", "task": "choice", "lora_r": 8, "lora_alpha": 16}},
    "plan": {"num_steps": 40, "trained_parameters": 1234567, "dtype": "float32", "num_train": 80},
    "measured": {
        "steps_done": 40,
        "best_step": 40,
        "seconds_by_phase": {"open": 1.0, "train": 59.0},
        "examples_per_s": 2.5,
        "history": {
            "step": STEPS,
            "loss": [2 / step for step in STEPS],
            "learning_rate": [1e-4] * 40,
            "grad_norm": [1.0] * 40,
        },
        "evaluations": EVALUATIONS,
    },
    "warnings": {"rows": {}, "messages": [f"odd {ATTACK}"]},
}


def text_of(page: str) -> str:
    return html.unescape(" ".join(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", page, flags=re.S).split()))


def test_the_page_says_what_was_trained_and_what_came_of_it():
    told = text_of(render_train_report(RECORD))
    for words in (
        "task choice",
        "rank 8, alpha 16",
        "1,234,567",
        "40 of 40",
        "0.800 0.400 before training",
        "0.0500 2.0000 in the first step",
        "step 40",
        "1 min 00 s",
        "before the first 1.5 0.400 0.300",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("change", "charts"),
    [
        ({}, ["loss", "evaluations", "rate", "norm"]),
        ({"evaluations": []}, ["loss", "rate", "norm"]),
        ({"history": {"step": []}}, []),
    ],
)
def test_curves_are_those_that_there_are(change, charts):
    record = RECORD | {"measured": RECORD["measured"] | change}
    assert [chart["id"] for chart in train_charts(record)] == charts
    assert "training" in render_train_report(record)


def test_a_run_that_ended_badly_says_how():
    error = {"type": "KeyboardInterrupt", "message": "checkpoint-3 is whole"}
    told = text_of(render_train_report({"status": "interrupted", "error": error, "run_info": {}}))
    assert "Run interrupted. KeyboardInterrupt: checkpoint-3 is whole" in told


def test_averages_are_the_sums_they_stand_for():
    """Independent check: the weights 0.9^k of all values so far, normalised."""
    values = np.random.default_rng(0).normal(size=30)
    for number, found in enumerate(smooth(list(values)), start=1):
        weights = 0.9 ** np.arange(number)[::-1]
        assert found == pytest.approx(np.average(values[:number], weights=weights))


def test_a_browser_draws_every_curve_in_silence(tmp_path):
    leave_train_report(tmp_path, RECORD)
    with open_report(tmp_path / "report.html") as (page, said):
        names = ("loss", "evaluations", "rate", "norm")
        assert drawn_charts(page) == [[f"plot-{name}", True] for name in names]
        assert not page.is_visible("#browser")
        assert page.title() == f"training {ATTACK.split('/')[-1]} - strata report"
        assert page.locator("body img").count() == 0
    assert said == []
