"""All ways to debias by name. Knows no formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from strata.engine.heads.debiasing.debias import Debias, DebiasSettings
from strata.engine.heads.debiasing.masked_set import MaskedSet
from strata.engine.heads.debiasing.permute import Permute, Rotate, Stated
from strata.engine.heads.debiasing.pride import Pride
from strata.engine.types import InputError

NO_DEBIAS = "none"
DEBIASES: dict[str, Callable[[DebiasSettings], Debias]] = {
    NO_DEBIAS: lambda settings: Stated(),
    "rotate": lambda settings: Rotate(),
    "permute": lambda settings: Permute(settings=settings),
    "set": lambda settings: MaskedSet(),
    "pride": lambda settings: Pride(settings=settings),
}
"""By the name that `--debias` gives."""

if TYPE_CHECKING:
    DebiasName = str
else:
    # The command line offers what is registered.
    DebiasName = Literal[tuple(DEBIASES)]


def choose_debias(name: str, settings: DebiasSettings | None = None) -> Debias:
    """Finds the way that `--debias` means.

    Raises:
        InputError: an unknown name.
    """
    if name not in DEBIASES:
        *others, last = DEBIASES
        raise InputError(f"--debias {name!r}: expected {', '.join(others)} or {last}")
    return DEBIASES[name](settings or DebiasSettings())
