"""A timeline keeps spans in a bounded list, and leaves a trace that viewers of traces take."""

import json

import pytest

from strata.engine.results import timeline as module
from strata.engine.results.roofline import describe_roofline
from strata.engine.results.timeline import Timeline


def note(track, layer, seconds=0.5):
    started = track.timeline.started + layer
    track.note("compute", group=1, layer=layer, device="cpu", started=started, seconds=seconds)


def test_spans_count_from_the_start():
    timeline = Timeline()
    note(timeline.begin("a"), 3)
    (span,) = timeline.spans
    assert (span.work, span.sweep, span.group, span.layer, span.device) == ("compute", 0, 1, 3, "cpu")
    assert span.start_s == pytest.approx(3.0)
    assert span.end_s == pytest.approx(3.5)


def test_a_span_without_seconds_ends_now(monkeypatch):
    timeline = Timeline(started=100.0)
    monkeypatch.setattr(module, "perf_counter", lambda: 107.0)
    timeline.begin("a").note("read", group=0, layer=0, device="disk", started=102.0)
    assert timeline.spans[0][-2:] == (2.0, 7.0)


def test_a_long_sweep_leaves_room_for_the_next(monkeypatch):
    monkeypatch.setattr(module, "MAX_SPANS", 5)
    monkeypatch.setattr(module, "MAX_SPANS_A_SWEEP", 3)
    timeline = Timeline()
    for name in ("a", "b"):
        track = timeline.begin(name)
        for layer in range(4):
            note(track, layer)
    assert [(span.sweep, span.layer) for span in timeline.spans] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert timeline.num_dropped == 3


def test_the_trace_has_complete_events_in_microseconds(tmp_path):
    # The fields that the Trace Event Format asks of a complete event ("ph": "X").
    timeline = Timeline()
    note(timeline.begin("members a, b"), 2)
    timeline.write(tmp_path / "timeline.json")
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    (complete,) = (event for event in events if event["ph"] == "X")
    assert complete["ts"] == pytest.approx(2e6)
    assert complete["dur"] == pytest.approx(5e5)
    names = {event["name"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"process_name": "members a, b", "thread_name": "compute cpu"}


@pytest.mark.parametrize(
    ("fraction", "source", "told"),
    [
        (0.42, "calibrated 2026-01-01", "42% of the GEMM roofline (calibrated 2026-01-01)"),
        (0.004, "calibrated", "under 1% of the GEMM roofline (calibrated)"),
        (
            0.42,
            "measured quickly",
            "42% of the GEMM roofline (measured in a fifth of a second: a rough guide)",
        ),
        (
            1.31,
            "measured quickly",
            "all of the GEMM roofline (measured in a fifth of a second: a rough guide)",
        ),
    ],
)
def test_no_share_beyond_all_is_told(fraction, source, told):
    assert describe_roofline(fraction, source) == told
