"""How fast a card multiplies int8 codes in each way, as runs on it measured: kept in the user's cache folder.

strata/cards/NAME.json holds for as long as torch is the same. What nobody has measured is not recommended:
`int8_over_float` is None there. Measures nothing itself: kernels/int8_linear/choice.py does, in a run.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from pydantic import ConfigDict

from strata.engine.files import OutputError, write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.machine.profile import calibrated_path
from strata.engine.types import InputError
from strata.kernels.int8_linear.choice import CHOICE, BackendChoice, Rates, over_dense

log = logging.getLogger(__name__)


class MeasuredOnFile(Schema):
    """What must be the same for the rates to hold."""

    model_config = ConfigDict(extra="forbid")

    card: str
    torch: str
    cuda: str | None


class CardProductsFile(Schema):
    """Operations a second by backend, and "dense", by product ("float16 28672x8192": outputs, inputs)."""

    model_config = ConfigDict(extra="forbid")

    measured_on: MeasuredOnFile
    op_per_s: dict[str, dict[str, float]]


def card_products_path(card: str) -> Path:
    """Where a card's figures are kept, beside a calibration."""
    return calibrated_path().with_name("cards") / f"{re.sub(r'[^A-Za-z0-9]+', '-', card)}.json"


def read_card_products(card: str) -> dict[str, Rates]:
    """Kept rates by product; none where nothing was kept, or with another torch."""
    path = card_products_path(card)
    if not path.is_file():
        return {}
    try:
        content = read_json_object(path)
        check_schema(CardProductsFile, content, str(path))
    except InputError as error:
        log.info("kept rates of a card are not used: %s", error)
        return {}
    return content["op_per_s"] if content["measured_on"] == _measured_on(card) else {}


def keep_card_products(card: str, product: str, rates: Rates) -> None:
    """Adds what was measured to what is kept."""
    products = {name: dict(kept) for name, kept in read_card_products(card).items()} | {product: dict(rates)}
    content = {"measured_on": _measured_on(card), "op_per_s": products}
    try:
        write_text_atomically(card_products_path(card), json.dumps(content, indent=2) + "\n")
    except OutputError as error:
        log.info("rates of a card are not kept: %s", error)


def use_kept_products(devices: Sequence[str], choice: BackendChoice = CHOICE) -> None:
    """Lets the choice of int8 kernels begin with what is kept of these devices, and keep what it measures."""
    for name in devices:
        if name.startswith("cuda"):
            card = torch.cuda.get_device_name(torch.device(name))
            choice.kept.update(
                ((card, product), rates) for product, rates in read_card_products(card).items()
            )
            choice.on_measured = keep_card_products


def int8_over_float(card: str) -> float | None:
    """How much faster int8 products are than dense ones: the median of those measured; None: none was."""
    ratios = [
        ratio for rates in read_card_products(card).values() if (ratio := over_dense(rates)) is not None
    ]
    return median(ratios) if ratios else None


def unmeasured_int8(cards: Sequence[str]) -> str | None:
    """One line on cards of which nobody knows whether int8 is fast on them; None where it was measured."""
    unknown = [card for card in dict.fromkeys(cards) if int8_over_float(card) is None]
    if not unknown:
        return None
    return (
        f"int8 was never measured on {', '.join(unknown)} with torch {torch.__version__}; "
        "a run with --dtype int8 measures it, and so does `strata bench gpu fast`"
    )


def _measured_on(card: str) -> dict[str, str | None]:
    return {"card": card, "torch": torch.__version__, "cuda": torch.version.cuda}
