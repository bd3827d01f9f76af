"""How fast this CPU multiplies matrices in each way: measured once, in a fraction of a second, and kept.

What `--dtype auto` and `--dtype int8` are decided by: a processor's flags do not say what is fast on it.
The figures stay in strata/products.json of the user's cache folder for as long as machine, threads and torch
are the same. Knows no model and no checkpoint.
Legend: T tokens, N outputs, K inputs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from pydantic import ConfigDict, Field

from strata.engine.files import OutputError, write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.machine.profile import calibrated_path, describe_machine
from strata.engine.types import InputError
from strata.kernels.int8_linear.linear import int8_linear
from strata.kernels.int8_linear.quantize import quantize_activations, quantize_weight

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What a CPU may compute in by its own choice; float16 overflows."""
INT8 = "int8"
NUM_INPUTS = 2048
SMALL_OUTPUTS, LARGE_OUTPUTS = 256, 4096
"""Of a product that tells what is out of the question, and of one for which the share of rounding to int8 is
a layer's."""
FEW_TOKENS, MANY_TOKENS = 64, 512
"""Rows of the first product, and most of the other: the fewer there are, the more a weight's order costs."""
LONG_S = 0.02
"""Of the larger product on what is fastest: it has as many rows as take so long."""
HOPELESS = 0.25
"""Share of the fastest rate below which a way is not timed on the larger product."""
SLOW_INT8 = 0.8
"""Share of the fastest floating dtype's rate below which int8 is given up: it also takes less memory."""
MIN_ROUNDS, MAX_ROUNDS = 5, 30
ENOUGH_S = 0.02
STEADY = 1.5
"""Median over least seconds; beyond it the machine was busy, and the next run measures again."""
SETTINGS_OF_LIBRARIES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables that hide instructions from oneDNN and torch."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProductRates:
    """FLOP/s of a thread in a linear layer, by its dtype: "float32", "bfloat16", "int8" (with rounding).

    `is_steady`: rounds took about equally long, so that they are worth keeping.
    """

    flop_per_s: Mapping[str, float]
    is_steady: bool = True

    @property
    def fastest_float(self) -> str:
        """Name of the floating dtype that is fastest; float32 where there is no difference."""
        return max(FLOATS, key=lambda name: self.flop_per_s[name])

    @property
    def int8_is_fast(self) -> bool:
        """Whether linear layers take about as long in int8 as in the fastest floating dtype, or less."""
        return self.flop_per_s[INT8] >= SLOW_INT8 * self.flop_per_s[self.fastest_float]

    def with_int8(self) -> ProductRates:
        """The same, but for int8, which is given up on no account."""
        rate = max(self.flop_per_s[INT8], self.flop_per_s[self.fastest_float])
        return ProductRates(flop_per_s=dict(self.flop_per_s) | {INT8: rate})

    def __str__(self) -> str:
        return (
            ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in self.flop_per_s.items())
            + " GFLOP/s a thread"
        )


class WaysSchema(Schema):
    """The rates as JSON holds them."""

    float32: float = Field(gt=0)
    bfloat16: float = Field(gt=0)
    int8: float = Field(gt=0)


class ProductRatesFile(Schema):
    """What the cache folder keeps: rates, and what must be the same for them to hold."""

    model_config = ConfigDict(extra="forbid")

    measured_on: dict[str, object]
    flop_per_s: WaysSchema


def product_rates_path() -> Path:
    """Where the figures are kept, beside a calibration."""
    return calibrated_path().with_name("products.json")


def product_rates() -> ProductRates:
    """This machine's, as they were measured once; measured now where they never were."""
    return _product_rates(product_rates_path(), json.dumps(_measured_on(), sort_keys=True))


@lru_cache(maxsize=8)
def _product_rates(path: Path, measured_on: str) -> ProductRates:
    return decide_product_rates(path, json.loads(measured_on))


def decide_product_rates(path: Path, measured_on: Mapping[str, object]) -> ProductRates:
    """Those that a file keeps of this machine, or measured ones, which it keeps then."""
    kept = read_product_rates(path, measured_on)
    if kept is not None:
        return kept
    rates = measure_product_rates()
    if not rates.is_steady:
        return rates
    content = {"measured_on": dict(measured_on), "flop_per_s": dict(rates.flop_per_s)}
    try:
        write_text_atomically(path, json.dumps(content, indent=2) + "\n")
    except OutputError as error:
        log.info("rates of products are not kept: %s", error)
    return rates


def read_product_rates(path: Path, measured_on: Mapping[str, object]) -> ProductRates | None:
    """Kept rates; None where there are none, or none of this machine."""
    if not path.is_file():
        return None
    try:
        content = read_json_object(path)
        check_schema(ProductRatesFile, content, str(path))
    except InputError as error:
        log.info("kept rates of products are not used: %s", error)
        return None
    holds = content["measured_on"] == dict(measured_on)
    return ProductRates(flop_per_s=content["flop_per_s"]) if holds else None


def measure_product_rates() -> ProductRates:
    """Times one product in every way, in turns, so that a busy moment of the machine meets all of them.

    On one thread: on a busy machine several would wait for each other, and all ways look alike.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates, _ = _time_products(FEW_TOKENS, SMALL_OUTPUTS, (*FLOATS, INT8))
        fastest = max(rates.values())
        likely = [name for name, rate in rates.items() if rate > HOPELESS * fastest]
        num_tokens = int(LONG_S * fastest / (2 * NUM_INPUTS * LARGE_OUTPUTS))
        num_tokens = min(max(num_tokens, FEW_TOKENS), MANY_TOKENS)
        refined, is_steady = _time_products(num_tokens, LARGE_OUTPUTS, likely)
    finally:
        torch.set_num_threads(num_threads)
    return ProductRates(flop_per_s=rates | refined, is_steady=is_steady)


def _time_products(num_tokens: int, num_outputs: int, ways: Sequence[str]) -> tuple[dict[str, float], bool]:
    """Best FLOP/s of a product in each of some ways, and whether their medians are about as good."""
    runs = _products(num_tokens, num_outputs)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for name in ways:
            runs[name]()
        started = perf_counter()
        for number in range(MAX_ROUNDS):
            if number >= MIN_ROUNDS and perf_counter() - started > ENOUGH_S:
                break
            for name in ways:
                seconds[name].append(_seconds(runs[name]))
    flops = 2 * num_tokens * NUM_INPUTS * num_outputs
    is_steady = all(median(found) < STEADY * min(found) for found in seconds.values())
    return {name: flops / min(found) for name, found in seconds.items()}, is_steady


def _products(num_tokens: int, num_outputs: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    x_TK = torch.randn(num_tokens, NUM_INPUTS, generator=generator)
    distinct_NK = torch.randn(SMALL_OUTPUTS, NUM_INPUTS, generator=generator)
    weight_NK = distinct_NK.repeat(num_outputs // SMALL_OUTPUTS, 1)
    codes, scales = quantize_weight(weight_NK)
    hidden = x_TK.bfloat16()

    def rounded() -> torch.Tensor:
        return int8_linear(quantize_activations(hidden), codes, scales, None, dtype=torch.bfloat16)

    def dense(dtype: torch.dtype) -> Callable[[], object]:
        x, weight = x_TK.to(dtype), weight_NK.to(dtype)
        return lambda: torch.nn.functional.linear(x, weight)

    products = {name: dense(dtype) for name, dtype in FLOATS.items()}
    return products | {INT8: rounded}


def _seconds(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started


def _measured_on() -> dict[str, object]:
    described = asdict(describe_machine())
    return {
        **described,
        "gpus": list(described["gpus"]),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **{name: os.environ.get(name) for name in SETTINGS_OF_LIBRARIES},
    }
