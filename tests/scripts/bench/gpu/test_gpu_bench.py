"""The acceptance of GPUs: what it leaves after each stage, and that it needs a card.

Its stages are run on simulated cards by tests/simulated_cuda.
"""

import json

import pytest

from strata.scripts.bench.gpu.config import GpuBenchConfig
from strata.scripts.bench.gpu.stages import AcceptanceStage, run_stages
from strata.scripts.cli import main


def fail(config):
    raise ZeroDivisionError("a card\nfell off")


RUNS = {
    "right": lambda config: {"rate": 1.5},
    "wrong": lambda config: {"ok": False, "rate": 0.5},
    "raises": fail,
    "not here": lambda config: {"why": "one device"},
}


def run(tmp_path, *names: str, limits: tuple[float, ...] = (), ends_all: bool = True, budget_s: float = 100):
    limits = limits or (1.0,) * len(names)
    stages = [
        AcceptanceStage(name=f"{index} {name}", run=RUNS[name], limit_s=limit, ends_all=ends_all)
        for index, (name, limit) in enumerate(zip(names, limits, strict=True))
    ]
    path = tmp_path / "found.json"
    is_right = run_stages(stages, GpuBenchConfig(folder=tmp_path), path, {"part": "correct"}, budget_s)
    found = json.loads(path.read_text())
    return is_right, {name: stage["verdict"] for name, stage in found["stages"].items()}, found


def test_verdicts_and_figures_are_kept(tmp_path):
    is_right, verdicts, found = run(tmp_path, "right", "not here")
    assert is_right
    assert verdicts == {"0 right": "ok", "1 not here": "skipped"}
    assert found["stages"]["0 right"]["rate"] == 1.5
    assert found["part"] == "correct"


@pytest.mark.parametrize(("name", "verdict"), [("wrong", "wrong"), ("raises", "error")])
def test_nothing_is_run_after_what_it_rests_on_is_wrong(name, verdict, tmp_path):
    is_right, verdicts, _ = run(tmp_path, "right", name, "right")
    assert not is_right
    assert verdicts == {"0 right": "ok", f"1 {name}": verdict}


def test_a_stage_may_fail_alone(tmp_path):
    is_right, verdicts, found = run(tmp_path, "raises", "right", ends_all=False)
    assert not is_right
    assert verdicts == {"0 raises": "error", "1 right": "ok"}
    assert found["stages"]["0 raises"]["error"] == "ZeroDivisionError: a card fell off"


def test_a_stage_without_time_is_skipped(tmp_path):
    is_right, verdicts, _ = run(tmp_path, "right", "right", limits=(200.0, 5.0))
    assert is_right
    assert verdicts == {"0 right": "skipped", "1 right": "ok"}


def test_what_is_known_is_on_disk_when_the_next_stage_begins(tmp_path):
    seen = []

    def look(config):
        seen.extend(json.loads((tmp_path / "found.json").read_text())["stages"])
        return {}

    stages = [
        AcceptanceStage(name="first", run=RUNS["right"], limit_s=1),
        AcceptanceStage(name="second", run=look, limit_s=1),
    ]
    run_stages(stages, GpuBenchConfig(), tmp_path / "found.json", {}, 100)
    assert seen == ["first"]


def test_without_a_card_one_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "gpu", "correct", "--folder", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no CUDA device" in line
    assert not list(tmp_path.iterdir())
