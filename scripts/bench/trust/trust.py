"""Whether results can be trusted, and at what cost: families, hostile files, fuzzers, probe, bits, a soak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strata.engine.files import write_text_atomically
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment, run_parts
from strata.scripts.bench.trust.costs import measure_deterministic, measure_probe
from strata.scripts.bench.trust.families import causal_model_types, families_page, walk_families
from strata.scripts.bench.trust.hostile import count_fuzz, count_hostile
from strata.scripts.bench.trust.soak import describe_soak, run_soak
from strata.scripts.bench.trust.trust_config import TrustBenchConfig


def run_trust_bench(config: TrustBenchConfig) -> int:
    """Runs the parts and appends their figures. Returns the exit status: 1 where something is wrong."""
    print_environment()
    figures = run_parts(PARTS, config.parts or tuple(PARTS), config)
    append_result("trust", {"config": asked_settings(config), **figures}, RESULTS)
    return int(any(figures.get(name) for name in MUST_BE_ZERO))


MUST_BE_ZERO = ("families_wrong", "hostile_tracebacks", "hostile_hangs", "fuzz_crashes")


def walk(config: TrustBenchConfig) -> dict[str, int]:
    """How many families are right, refused and wrong; writes the page of them, if asked."""
    families = walk_families(causal_model_types())
    if config.page is not None:
        write_text_atomically(config.page, families_page(families))
    outcomes = [family.outcome for family in families]
    return {f"families_{outcome}": outcomes.count(outcome) for outcome in ("right", "refused", "wrong")}


PARTS: dict[str, Callable[[TrustBenchConfig], dict[str, Any]]] = {
    "probe": measure_probe,
    "deterministic": measure_deterministic,
    "soak": lambda config: describe_soak(run_soak(config.soak_questions)),
    "hostile": lambda config: count_hostile(),
    "fuzz": lambda config: count_fuzz(config.fuzz_inputs, config.fuzz_first),
    "families": walk,
}
