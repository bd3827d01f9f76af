"""The sweep bench on a slow machine: as much of it as ends in time, and budgets that suffice."""

from __future__ import annotations

import pytest

from strata.engine.machine import product_rates
from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.configs import SweepBenchConfig
from strata.scripts.bench.sweep import core, sweep
from strata.scripts.bench.sweep.fitted import USUAL_SHARE, bench_flops, fit_bench

from ..small_shape import SMALL

AVX2 = product_rates.ProductRates(flop_per_s={"float32": 1.4e11, "bfloat16": 7e9, "int8": 6e9})


def test_a_fast_machine_measures_all():
    fitted = fit_bench(SweepBenchConfig(), 1e14)
    assert fitted.notice == ""
    assert (fitted.config.rounds, fitted.config.num_questions, fitted.config.num_layers) == (3, 8, 22)


@pytest.mark.parametrize("flop_per_s", [1e11, 1.4e11, 1e12])
def test_a_slow_machine_measures_what_ends_in_ten_minutes(flop_per_s):
    fitted = fit_bench(SweepBenchConfig(), flop_per_s)
    assert bench_flops(fitted.config) / (flop_per_s * USUAL_SHARE) <= 600
    assert 2 <= fitted.config.num_layers <= 22
    assert fitted.config.num_questions >= 4
    assert "to end in about 10 minutes (--minutes)" in fitted.notice


def test_what_cannot_end_in_time_is_said():
    fitted = fit_bench(SweepBenchConfig(), 1e10)
    assert fitted.config.num_layers == 2
    assert "the least there is: about " in fitted.notice


def test_rounds_go_first_and_layers_last():
    asked = SweepBenchConfig()
    whole = bench_flops(fit_bench(asked, 1e20).config)
    a_little_less = fit_bench(asked, 0.8 * whole / 600 / USUAL_SHARE).config
    assert (a_little_less.rounds, a_little_less.num_questions, a_little_less.num_layers) == (1, 8, 22)


def test_only_chosen_parts_count():
    assert bench_flops(SweepBenchConfig(parts=("core",))) < bench_flops(SweepBenchConfig())
    assert bench_flops(SweepBenchConfig(parts=("agreement",))) == 0


@pytest.fixture
def config(tmp_path, monkeypatch, fixed_rates) -> SweepBenchConfig:
    """A bench of defaults, but for its sizes, on a CPU that is fast in float32 alone."""
    monkeypatch.setattr("strata.scripts.bench.sweep.probes.PROBE_S", 0.001)
    monkeypatch.setitem(SHAPES, SMALL.name, SMALL)
    monkeypatch.setattr(product_rates, "_product_rates", lambda *where: AVX2)
    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "results")
    return SweepBenchConfig(
        shape=SMALL.name,  # type: ignore[arg-type]
        folder=tmp_path / "bench",
        device="cpu",
        prefix_tokens=24,
        option_tokens=4,
        num_options=3,
        num_questions=4,
        num_dynamic_questions=1,
        num_naive_questions=1,
        rounds=2,
        parts=("core",),
    )


def test_the_default_budget_holds_two_layers_in_float32(config):
    """Stored in 16 bits and computed in 32, a quarter of the checkpoint is not enough."""
    config.folder.mkdir()
    found = core.run_core_part(config)
    assert found["dtype"] == "float32"
    assert found["int8_computed_in"] == "dense"
    assert found["budget_gib"] > 0.25 * sum(
        file.stat().st_size for file in (config.folder / SMALL.name).glob("*.safetensors")
    ) / (1 << 30)
    assert found["int8_over_best_float"] > 0


def test_an_interrupted_sweep_bench_goes_on(config, monkeypatch, capfd):
    runs = []
    probe = core.probe_step

    def stop_at_third(steps, name, measure):
        runs.append(name)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return probe(steps, name, measure)

    monkeypatch.setattr(core, "probe_step", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep_bench(config)
    assert (config.folder / sweep.KEPT).is_file()
    monkeypatch.setattr(core, "probe_step", probe)
    assert sweep.run_sweep_bench(config) == 0
    assert "3 step(s) are kept" in capfd.readouterr().out
    assert not (config.folder / sweep.KEPT).exists()
    assert (sweep.RESULTS / "sweep.jsonl").is_file()
