"""The simulated sweep: tiny cases by hand, limits, monotonicity, and that jumping ahead changes nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.engine.plan.simulation import RESOURCES, simulate_sweep
from strata.engine.plan.times import LayerTimes, SweepTimes


def sweep(*layers: LayerTimes, **settings: object) -> SweepTimes:
    return SweepTimes(**{"layers": layers, "num_sweeps": 1, "num_slots": 2, **settings})


def streamed(read_s: float, compute_s: float, **settings: float) -> LayerTimes:
    return LayerTimes(read_s=read_s, compute_s=compute_s, **settings)


def intervals(times: SweepTimes) -> dict[tuple[str, int, int], tuple[float, float]]:
    played = simulate_sweep(times, record=True)
    return {(one.resource, one.sweep, one.layer): (one.start_s, one.end_s) for one in played.timeline}


def test_compute_hides_reading_but_for_the_first_layer():
    played = simulate_sweep(sweep(*[streamed(2, 5)] * 3))
    assert played.total_s == 2 + 3 * 5
    assert played.busy_s["disk"] == 6
    assert played.busy_s["compute"] == 15
    assert played.stall_s == 2
    assert played.bottleneck == "compute"


def test_reading_hides_compute_but_for_the_last_layer():
    played = simulate_sweep(sweep(*[streamed(5, 2)] * 3))
    assert played.total_s == 3 * 5 + 2
    assert played.stall_s == 17 - 6
    assert played.bottleneck == "disk"


def test_the_reader_waits_for_a_free_slot():
    # Layer 2 may be read when layer 0 has been computed (at 11), not when layer 1 has been read (at 2).
    assert intervals(sweep(*[streamed(1, 10)] * 3))["disk", 0, 2] == (11, 12)
    # With one slot nothing is read ahead.
    assert simulate_sweep(sweep(*[streamed(1, 10)] * 3, num_slots=1)).total_s == 33


def test_resident_layers_need_no_slot_and_are_read_once():
    layers = [streamed(1, 10, resident=True)] * 3
    times = sweep(*layers, num_sweeps=3)
    assert intervals(times)["disk", 0, 2] == (2, 3)
    played = simulate_sweep(times)
    assert played.total_s == 1 + 90
    assert played.busy_s["disk"] == 3


def test_the_next_sweeps_first_layers_are_read_behind_the_last_ones():
    played = intervals(sweep(*[streamed(3, 10)] * 2, num_sweeps=2))
    assert played["disk", 1, 0] == (13, 16)
    assert played["disk", 1, 1] == (23, 26)
    assert played["compute", 1, 0] == (23, 33)


def test_embedding_and_head_take_the_disk_between_sweeps():
    times = sweep(streamed(3, 10), num_sweeps=2, num_slots=1, embedding_s=2, head_s=1)
    played = intervals(times)
    assert played["disk", 0, 0] == (2, 5)
    assert played["compute", 0, 0] == (5, 15)
    # The head at 15, then the next sweep's embedding, and only then its layer.
    assert played["disk", 1, 0] == (18, 21)
    assert simulate_sweep(times).total_s == 32


def test_on_cpu_the_reader_decodes_before_it_reads_on():
    played = intervals(sweep(*[streamed(2, 20, decode_s=3)] * 2))
    assert played["decode", 0, 0] == (2, 5)
    assert played["disk", 0, 1] == (5, 7)
    assert played["compute", 0, 0] == (5, 25)


def test_on_cuda_a_layer_is_copied_and_decoded_while_the_next_is_read():
    layers = [streamed(2, 20, decode_s=3, copy_s=1)] * 2
    played = intervals(sweep(*layers, decode_by_reader=False))
    assert played["copy", 0, 0] == (2, 3)
    assert played["decode", 0, 0] == (3, 6)
    assert played["disk", 0, 1] == (2, 4)
    # The copy of layer 1 waits for the decoding of layer 0: one stream.
    assert played["copy", 0, 1] == (6, 7)


def test_what_reading_takes_from_computing_is_added_to_the_layer_before():
    layers = [streamed(1, 10, interference_s=0.5)] * 3
    assert simulate_sweep(sweep(*layers)).total_s == 1 + 30 + 2 * 0.5
    resident = [replace(layer, resident=True) for layer in layers]
    assert simulate_sweep(sweep(*resident, num_sweeps=2)).total_s == 1 + 60 + 2 * 0.5


def test_hidden_states_hold_the_next_layer_up():
    played = simulate_sweep(sweep(*[streamed(0, 10, store_s=2)] * 3))
    assert played.total_s == 36
    assert played.busy_s["store"] == 6


def test_a_cache_serves_later_sweeps():
    layer = streamed(10, 0, read_again_s=1)
    assert simulate_sweep(sweep(layer, num_sweeps=3)).total_s == 12


SECONDS = st.sampled_from([0.0, 0.25, 1.0, 2.0, 3.5, 10.0])


@st.composite
def sweeps(draw: st.DrawFn) -> SweepTimes:
    layers = draw(
        st.lists(
            st.builds(
                LayerTimes,
                read_s=SECONDS,
                read_again_s=st.none() | SECONDS,
                copy_s=SECONDS,
                decode_s=SECONDS,
                compute_s=SECONDS,
                store_s=SECONDS,
                interference_s=SECONDS,
                resident=st.booleans(),
            ),
            min_size=1,
            max_size=5,
        )
    )
    return SweepTimes(
        layers=tuple(layers),
        num_sweeps=draw(st.integers(1, 12)),
        num_slots=draw(st.integers(1, 3)),
        embedding_s=draw(SECONDS),
        head_s=draw(SECONDS),
        decode_by_reader=draw(st.booleans()),
    )


@given(sweeps())
@settings(deadline=None, max_examples=300)
def test_jumping_over_sweeps_that_are_alike_changes_nothing(times):
    quick, whole = simulate_sweep(times), simulate_sweep(times, extrapolate=False)
    assert quick.total_s == pytest.approx(whole.total_s, rel=1e-9)
    assert quick.stall_s == pytest.approx(whole.stall_s, rel=1e-9, abs=1e-9)
    assert quick.busy_s == pytest.approx(whole.busy_s, rel=1e-9)


@given(sweeps())
@settings(deadline=None, max_examples=200)
def test_no_resource_is_busy_longer_than_the_whole_or_twice_at_once(times):
    played = simulate_sweep(times, record=True)
    assert all(played.busy_s[name] <= played.total_s + 1e-9 for name in RESOURCES)
    assert played.stall_s <= played.total_s
    for name in RESOURCES:
        own = sorted((one.start_s, one.end_s) for one in played.timeline if one.resource == name)
        assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(own))
        assert sum(end - start for start, end in own) == pytest.approx(played.busy_s[name])


FIELDS = ("read_s", "read_again_s", "copy_s", "decode_s", "compute_s", "store_s", "interference_s")


@given(sweeps(), st.sampled_from(FIELDS), st.integers(0, 4), st.sampled_from([0.1, 1.0, 7.0]))
@settings(deadline=None, max_examples=300)
def test_nothing_slower_ever_ends_the_sweep_earlier(times, name, which, more_s):
    layers = list(times.layers)
    layer = layers[which % len(layers)]
    if getattr(layer, name) is None:
        return
    layers[which % len(layers)] = replace(layer, **{name: getattr(layer, name) + more_s})
    slower = replace(times, layers=tuple(layers))
    assert simulate_sweep(slower).total_s >= simulate_sweep(times).total_s - 1e-9


@given(sweeps())
@settings(deadline=None, max_examples=100)
def test_a_slot_more_never_ends_the_sweep_later(times):
    more = replace(times, num_slots=times.num_slots + 1)
    # Between sweeps the disk serves in order of asking: reading further ahead may come before head and
    # embedding, so these are left out.
    times, more = (replace(one, embedding_s=0.0, head_s=0.0) for one in (times, more))
    assert simulate_sweep(more).total_s <= simulate_sweep(times).total_s + 1e-9


def test_without_reading_a_sweep_is_its_computing():
    layers = [streamed(0, 1 + index, store_s=0.5) for index in range(6)]
    assert simulate_sweep(sweep(*layers, num_sweeps=4)).total_s == 4 * (21 + 3)


def test_without_computing_a_sweep_is_its_reading():
    layers = [streamed(1 + index, 0) for index in range(6)]
    assert simulate_sweep(sweep(*layers, num_sweeps=4)).total_s == 4 * 21
