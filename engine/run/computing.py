"""What a run computes in: told as it begins, and kept when it is resumed. Decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.machine.machine import PRODUCTS, Machine
from strata.engine.machine.product_rates import ProductRates, WaysSchema


class RecordedRates(Schema):
    """The part of a plan that its dtype was decided by."""

    product_flop_per_s: WaysSchema


def tell_computing(machine: Machine) -> None:
    """Says on stderr what dtype was decided by a measurement, and warns where it is not as asked."""
    if machine.products is None:
        return
    print(f"computing in {machine.computes_in} (measured: {machine.products})", file=sys.stderr, flush=True)
    if machine.notice:
        print(f"warning: {machine.notice}", file=sys.stderr, flush=True)


def recorded_products(out: Path) -> ProductRates | None:
    """What the run in a folder decided its dtypes by; None where there is none, or a dtype was given.

    Raises:
        InputError: its run.json is broken.
    """
    record = out / "run.json"
    if not record.is_file():
        return None
    plan = read_json_object(record).get("plan")
    for part in _plans(plan if isinstance(plan, Mapping) else {}):
        if PRODUCTS in part:
            kept = check_schema(RecordedRates, {PRODUCTS: part[PRODUCTS]}, f"{record}: plan")
            return ProductRates(flop_per_s=kept.product_flop_per_s.model_dump())
    return None


def _plans(plan: Mapping[str, object]) -> list[Mapping[str, object]]:
    """A job's plan, or those of its parts, or of a pipeline's units."""
    of_units = [unit.get("plan") for unit in _mappings(plan.get("units"))]
    inner = _mappings(of_units) or _mappings(plan.get("parts"))
    return [part for one in inner for part in _plans(one)] if inner else [plan]


def _mappings(values: object) -> list[Mapping[str, object]]:
    return [one for one in values if isinstance(one, Mapping)] if isinstance(values, list) else []
