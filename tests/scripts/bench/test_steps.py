"""Steps of a bench: kept when it is interrupted, gone on with when called again, left out when time is up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strata.engine import progress
from strata.scripts.bench.steps import BenchSteps, keep_steps

ASKED = {"config": {"rounds": 2}, "commit": "c0ffee"}


def run_bench(path: Path, asked: dict, fails_at: str | None = None) -> tuple[list[str], dict]:
    """A bench of three steps; returns which were measured, and the figures."""
    measured: list[str] = []

    def measure(name: str) -> dict[str, float]:
        if name == fails_at:
            raise KeyboardInterrupt
        measured.append(name)
        return {"seconds": float(len(name))}

    with keep_steps("bench", path, asked, total=3) as steps:
        figures = {name: steps.run(name, lambda name=name: measure(name)) for name in ("a", "bb", "ccc")}
    return measured, figures


def test_an_interrupted_bench_goes_on_where_it_stopped(tmp_path, capfd):
    path = tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        run_bench(path, ASKED, fails_at="ccc")
    assert f"2 step(s) are kept in {path}" in capfd.readouterr().err
    measured, figures = run_bench(path, ASKED)
    assert measured == ["ccc"]
    assert figures == {"a": {"seconds": 1.0}, "bb": {"seconds": 2.0}, "ccc": {"seconds": 3.0}}
    assert "2 step(s) are kept from a run that was interrupted" in capfd.readouterr().out
    assert not path.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["asked"].update(commit="beef"),
        lambda content: content.pop("asked"),
        lambda content: content.update(found=[1]),
    ],
)
def test_what_is_kept_holds_for_the_same_bench_alone(change, tmp_path):
    path = tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        run_bench(path, ASKED, fails_at="bb")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert run_bench(path, ASKED)[0] == ["a", "bb", "ccc"]


def test_a_line_a_minute_where_stderr_is_no_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    run_bench(tmp_path / "kept.json", ASKED)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["bench: 33%", "bench: 67%", "bench: 100%"]


def test_time_that_is_over_leaves_out_what_is_not_kept():
    told: list[int] = []
    steps = BenchSteps(found={"kept": 1}, ends_s=0.0, advance=told.append)
    assert steps.has_time("kept")
    assert not steps.has_time("new")
    assert told == [1]
    assert BenchSteps().has_time("new")
