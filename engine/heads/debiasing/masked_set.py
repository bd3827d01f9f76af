"""Way set: the options are a set to the model, mutually masked and all at the same positions.

What a prompt lists is then order-independent by construction, with the cost of one order. Letters would tell
the order again, so the head has to score an option by its text. Knows no tree: siblings.py has the rule.
Source: McIlroy-Young et al., "Order-Independence Without Fine Tuning" (NeurIPS 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

from strata.engine.heads.debiasing.debias import AskedHead
from strata.engine.heads.debiasing.permute import Stated
from strata.engine.types import InputError


@dataclass(frozen=True, kw_only=True)
class MaskedSet(Stated):
    """The stated order in the text, none in what the model sees."""

    name = "set"
    masks_options = True

    def suits(self, head: AskedHead) -> bool:
        """Heads that are asked of one option at a time, while the prompt lists all.

        Raises:
            InputError: another head.
        """
        if head.needs != "option":
            raise InputError(
                f"--debias set: head {head.name} does not score an option by its text; "
                "expected --head loglik or yes-no, or a classifier of options"
            )
        return True
