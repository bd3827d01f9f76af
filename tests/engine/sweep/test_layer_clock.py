"""A sweep notes what it does on every layer of every group, wherever that happens."""

import json
from collections import Counter

import pytest

from strata.engine.results.timeline import Timeline
from strata.engine.sweep.layer_clock import LayerClock

STREAMED = {"resident_layers": 0, "num_groups": 2}


def spans_of(run):
    events = json.loads((run.out / "timeline.json").read_text())["traceEvents"]
    row_of = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    return [(row_of[event["tid"]], event) for event in events if event["ph"] == "X"]


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_every_layer_of_every_group_is_noted_once_a_device(devices, checkpoint, score, tmp_path):
    run = score(model=checkpoint("llama-gqa"), devices=devices, out=tmp_path / "out", **STREAMED)
    num_layers = run.record["plan"]["num_layers"]
    places = ["cpu"] if devices == "cpu" else ["cpu lane 1", "cpu lane 2"]
    num_groups = run.record["plan"]["num_groups"]
    spans = spans_of(run)
    once_a_layer = num_layers * num_groups
    assert Counter(row for row, _ in spans) == {
        "read disk": once_a_layer,
        "copy cpu": once_a_layer,
        **{f"{work} {place}": once_a_layer for work in ("wait", "compute", "store") for place in places},
    }
    for place in places:
        layers = {
            (event["args"]["group"], event["name"]) for row, event in spans if row == f"compute {place}"
        }
        assert layers == {
            (group, f"layer {layer}") for group in range(num_groups) for layer in range(num_layers)
        }


def test_a_layer_is_computed_after_it_was_read_and_stored_while_computed(checkpoint, score, tmp_path):
    run = score(model=checkpoint("llama-gqa"), devices="cpu", out=tmp_path / "out", **STREAMED)
    by_layer = {}
    for row, event in spans_of(run):
        key = (event["args"]["group"], event["name"])
        by_layer.setdefault(key, {})[row.split()[0]] = (event["ts"], event["ts"] + event["dur"])
    for works in by_layer.values():
        assert works["read"][1] <= works["copy"][0] + 0.2
        assert works["copy"][1] <= works["compute"][0] + 0.2
        assert works["wait"][1] <= works["compute"][0] + 0.2
        assert 0 < works["store"][1] - works["store"][0] < works["compute"][1] - works["compute"][0]


class Worker:
    store_s = 1.0


def test_the_store_counts_what_the_layer_added():
    worker, timeline = Worker(), Timeline()
    clock = LayerClock([worker], timeline.begin("a"), "cpu")
    clock.has_weights()
    worker.store_s = 1.25
    clock.note(0, 7)
    (store,) = (span for span in timeline.spans if span.work == "store")
    assert store.end_s - store.start_s == pytest.approx(0.25)
    assert {span.layer for span in timeline.spans} == {7}


def test_without_a_track_nothing_is_noted():
    clock = LayerClock([Worker()], None, "cpu")
    clock.has_weights()
    clock.note(0, 0)
