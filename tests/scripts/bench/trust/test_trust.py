"""The bench of trust: what it counts, and that a soak grows nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.scripts.bench.trust import hostile, trust
from strata.scripts.bench.trust.costs import measure_deterministic, measure_probe
from strata.scripts.bench.trust.soak import Sample, describe_soak, run_soak
from strata.scripts.bench.trust.trust_config import TrustBenchConfig

TESTS = """
import time, pytest

@pytest.mark.parametrize("number", range(3))
def test_fine(number): pass

def test_traceback(): {}["absent"]

def test_hang(): time.sleep(9)

@pytest.mark.skip
def test_skipped(): pass

def test_inputs(record_property): record_property("inputs", 40)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "test_them.py").write_text(TESTS)
    monkeypatch.setattr(hostile, "ROOT", tmp_path)
    monkeypatch.setattr(hostile, "MAX_SECONDS", 1)
    monkeypatch.setattr(hostile, "HOSTILE_TESTS", ("test_them.py",))
    monkeypatch.setattr(hostile, "FUZZ_TESTS", ("test_them.py",))
    return tmp_path


def test_hostile_inputs_are_counted(checkout: Path) -> None:
    assert hostile.count_hostile() == {"hostile_inputs": 6, "hostile_tracebacks": 1, "hostile_hangs": 1}


def test_fuzz_inputs_are_counted(checkout: Path) -> None:
    (checkout / "test_them.py").write_text(TESTS.replace("time.sleep(9)", "pass"))
    assert hostile.count_fuzz(40, 0) == {"fuzz_inputs": 40, "fuzz_crashes": 1}


def test_without_a_checkout_there_is_nothing_to_count(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hostile, "ROOT", tmp_path)
    with pytest.raises(InputError, match="expected a checkout"):
        hostile.count_hostile()


def test_every_test_that_is_counted_is_there() -> None:
    for path in (*hostile.HOSTILE_TESTS, *hostile.FUZZ_TESTS):
        assert (hostile.ROOT / path).exists(), path


def test_something_wrong_is_an_exit_status(monkeypatch) -> None:
    monkeypatch.setattr(trust, "append_result", lambda *given: None)
    for crashes, status in ((0, 0), (1, 1)):
        monkeypatch.setitem(trust.PARTS, "fuzz", lambda config, found=crashes: {"fuzz_crashes": found})
        assert trust.run_trust_bench(TrustBenchConfig(parts=("fuzz",))) == status


def test_costs_are_measured(tmp_path: Path) -> None:
    config = TrustBenchConfig(folder=tmp_path, shape="tiny", num_layers=2, num_questions=4, rounds=1)
    found = measure_probe(config) | measure_deterministic(config)
    assert found["probe_ms"] > 0
    assert found["probe_readout_error"] < 1e-2
    assert found["deterministic_cost"] > 0


def test_growth_is_a_slope_after_the_first_rounds() -> None:
    samples = [
        Sample(
            num_questions=500 * (number + 1),
            resident_mib=900 - 100 * number if number < 2 else 700 + 0.25 * number,
            in_use_mib=100 + 0.1 * number,
            num_handles=10 + number // 4,
            num_threads=5,
        )
        for number in range(8)
    ]
    found = describe_soak(samples)
    assert found["soak_rss_slope_mib_per_1k"] == pytest.approx(0.5)
    assert found["soak_in_use_slope_mib_per_1k"] == pytest.approx(0.2)
    assert (found["soak_questions"], found["soak_new_handles"], found["soak_new_threads"]) == (4000, 1, 0)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_soak_grows_nothing() -> None:
    """20,000 questions: a leak of 100 bytes each would be seen in what malloc has given out.

    What is resident beyond that are malloc's pools, one for each of some threads: they fill for a while.
    """
    samples = run_soak(20_000)
    found = describe_soak(samples)
    assert found["soak_in_use_slope_mib_per_1k"] < 0.1
    assert found["soak_rss_slope_mib_per_1k"] < 1.5
    assert found["soak_new_handles"] <= 0
    assert found["soak_new_threads"] <= 0
