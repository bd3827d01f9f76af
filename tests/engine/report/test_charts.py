"""The figures hold the numbers they should, worked out here by hand."""

import numpy as np
import pytest

from strata.engine.report.charts import answer_charts
from strata.engine.report.members import member_table, rows_before_debiasing, rows_by_member
from strata.engine.report.stages import last_stage, stage_chart, stage_table
from strata.engine.report.timeline_chart import MAX_DRAWN, timeline_chart
from strata.engine.results.timeline import Span, Timeline

from .sample_report import make_row


def charts_of(rows, members=None, before=None):
    return {chart["id"]: chart for chart in answer_charts(rows, members or {"one": rows}, before or {})}


def sure_of(option, probability, answer, number=0, members=None):
    """A row of two options, the given one of which has a probability."""
    scores = np.log([1 - probability, 1 - probability])
    scores[option] = np.log(probability)
    return make_row(f"q{number}", scores, answer, members=members)


ROWS = [sure_of(0, 0.9, 0), sure_of(0, 0.9, 1), sure_of(1, 0.7, 1), sure_of(1, 0.6, None)]


def test_margins_of_right_wrong_and_unknown_questions():
    traces = {trace["name"]: trace for trace in charts_of(ROWS)["margins"]["data"]}
    assert traces.keys() == {"right", "wrong", "unknown"}
    # Margins are 0.8 (right and wrong), 0.4 (right) and 0.2, each at or next to the edge of a bin of 0.05.
    assert sum(traces["right"]["y"]) == 2
    assert sum(traces["wrong"]["y"]) == sum(traces["unknown"]["y"]) == 1
    (place,) = np.flatnonzero(traces["wrong"]["y"])
    low, high = traces["wrong"]["customdata"][place]
    assert low - 1e-9 <= 0.8 <= high + 1e-9


def test_probabilities_of_right_and_other_options_are_shares():
    right, others = charts_of(ROWS)["probabilities"]["data"]
    assert sum(right["y"]) == pytest.approx(1)
    assert sum(others["y"]) == pytest.approx(1)
    # Of the three answered questions, right options have 0.9, 0.1 and 0.7: nothing lies in (0.15, 0.65).
    assert sum(y for x, y in zip(right["x"], right["y"], strict=True) if 0.15 < x < 0.65) == 0


def test_reliability_by_hand():
    chart = charts_of(ROWS)["reliability"]
    curve = chart["data"][1]
    assert curve["x"] == pytest.approx([0.7, 0.9])
    assert curve["y"] == pytest.approx([1.0, 0.5])
    assert curve["customdata"] == [1, 2]
    nll = -np.mean(np.log([0.9, 0.1, 0.7]))
    brier = np.mean([2 * 0.1**2, 2 * 0.9**2, 2 * 0.3**2])
    ece = (1 * 0.3 + 2 * 0.4) / 3
    assert f"NLL {nll:.3f} nats, Brier score {brier:.3f}, ECE {ece:.3f} on 3" in chart["note"]


def test_without_answers_there_is_no_reliability():
    charts = charts_of([sure_of(1, 0.6, None)])
    assert charts.keys() == {"margins", "probabilities", "positions"}
    assert charts["positions"]["data"][0]["y"] == [0.0, 1.0]


def test_positions_before_and_after_debiasing():
    # Before, "A" whatever the answer; after, always right.
    rows = [sure_of(answer, 0.9, answer, members={"stated_order": [1.0, 0.0]}) for answer in (0, 1, 1, 1)]
    names = ["one"]
    chart = charts_of(rows, rows_by_member(names, rows), rows_before_debiasing(names, rows))["positions"]
    shares = {trace["name"]: trace["y"] for trace in chart["data"]}
    assert shares == {
        "the answer": [0.25, 0.75],
        "before debiasing": [1.0, 0.0],
        "the run's best option": [0.25, 0.75],
    }
    # Recalls before are 1 and 0, whose standard deviation is 0.5; after they are 1 and 1.
    assert "recalls 0.000" in chart["note"]
    assert "before debiasing 0.500" in chart["note"]


def test_agreement_of_members():
    rows = [
        sure_of(0, 0.9, 0, number, members={"a": [1.0, 0.0], "b": said})
        for number, said in enumerate([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    ]
    names = ["a", "b"]
    (trace,) = charts_of(rows, rows_by_member(names, rows))["agreement"]["data"]
    assert trace["z"] == [[1.0, 0.25], [0.25, 1.0]]
    assert trace["text"][0] == ["100%", "25%"]


def test_each_member_is_judged_by_its_own_scores():
    rows = [sure_of(0, 0.9, 0, number, members={"a": [1.0, 0.0], "b": [0.0, 1.0]}) for number in range(3)]
    record = {"plan": {"members": ["a", "b"], "head": "letters", "dtype": "float32"}}
    header, *table = member_table(record, rows_by_member(["a", "b"], rows))
    accuracies = [row[header.index("accuracy")] for row in table]
    assert accuracies == ["1.000", "0.000"]
    assert "weight" not in header


def stage(name, members, after, before=None, of_all=0.5):
    counts = {"num_questions": 10, "num_chosen": 6, "num_reached": 5, "num_changed": 2}
    scored = {
        "metrics": {"map_at_3": of_all},
        "chosen_before": before and {"map_at_3": before},
        "chosen_after": before and {"map_at_3": after},
    }
    return {"name": name, "members": members, "seconds": 75.0} | counts | scored


CASCADE = {
    "measured": {"stages": [stage("first", ["a", "b"], 0.5), stage("big", ["a", "c"], 0.7, 0.4, 0.6)]},
    "metrics": {"map_at_3": 0.65},
}


def test_the_gain_of_each_stage():
    (chart,) = stage_chart(CASCADE)
    before, after, of_all = chart["data"]
    assert (before["x"], before["y"]) == (["big"], [0.4])
    assert (after["x"], after["y"]) == (["big"], [0.7])
    assert of_all["y"] == [0.5, 0.6, 0.65]
    row = stage_table(CASCADE)[2]
    assert row == ["big", "a, c", "6", "5", "2", "1 min 15 s", "0.400 to 0.700", "0.600"]


@pytest.mark.parametrize(("scored_by", "reached"), [(["a", "b"], 0), (["b"], 0), (["a", "c"], 1), ([], None)])
def test_the_last_stage_of_a_question(scored_by, reached):
    assert last_stage(CASCADE, scored_by) == reached


def test_a_timeline_starts_at_zero_and_is_bounded():
    spans = [Span("compute", 0, 0, place, "cpu", 5.0 + place, 5.5 + place) for place in range(MAX_DRAWN + 10)]
    (chart,) = timeline_chart(Timeline(sweeps=["a"], spans=spans))
    (trace,) = chart["data"]
    assert trace["base"][:2] == [0.0, 1.0]
    assert len(trace["x"]) == MAX_DRAWN
    assert set(trace["x"]) == {0.5}
    assert "10 later ones are not" in chart["note"]
    assert timeline_chart(Timeline()) == []


def test_waits_for_a_lock_are_no_waits_for_weights():
    spans = [
        Span("wait", 0, 0, place, "cpu", place, place + seconds) for place, seconds in ((0, 1e-5), (1, 0.3))
    ]
    (chart,) = timeline_chart(Timeline(sweeps=["a"], spans=spans))
    assert chart["data"][0]["x"] == [0.3]
