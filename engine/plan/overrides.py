"""What of a plan the user fixes, and how long its groups may be. Imports nothing heavy: --help is quick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from strata.engine.types import InputError

StoreKind = Literal["device", "ram", "disk"]
"""Where hidden states wait between layers."""


@dataclass(frozen=True, kw_only=True)
class PlanOverrides:
    """What the user fixes; None leaves the choice to the planner. Every field is a flag of the same name."""

    micro_batch_tokens: int | None = None
    """Fix the planner's choice: tokens a micro-batch."""
    num_groups: int | None = None
    """Fix the planner's choice: groups, each a sweep over the weights."""
    resident_layers: int | None = None
    """Fix the planner's choice: layers that stay in memory."""
    hidden_store: StoreKind | None = None
    """Fix the planner's choice: where hidden states wait between layers."""
    deterministic: bool = False
    """Compute every question by itself: its scores are the same to the last bit whatever else is scored, in
    whatever order and groups (on CPU, with equally many threads). Slower: questions share no prefixes."""

    def check(self) -> None:
        """Raises InputError when a number is too small, or when settings exclude each other."""
        for name, least in (("micro_batch_tokens", 1), ("num_groups", 1), ("resident_layers", 0)):
            setting = getattr(self, name)
            if setting is not None and setting < least:
                raise InputError(
                    f"--{name.replace('_', '-')}: {setting} is too small; expected at least {least}"
                )
        if self.deterministic and self.micro_batch_tokens is not None:
            raise InputError(
                "--micro-batch-tokens: with --deterministic a micro-batch is a question; expected one of both"
            )

    def check_devices(self, devices: Sequence[str]) -> None:
        """Raises InputError when settings mean nothing on these devices."""
        if self.deterministic and any(device != "cpu" for device in devices):
            raise InputError(
                f"--deterministic: equal bits are promised on CPU alone, not on {', '.join(devices)}; "
                "expected --devices cpu"
            )


@dataclass(frozen=True, kw_only=True)
class GroupGoal:
    """How a job that may end early is cut into groups: none longer than `longest_s`, and at most `most`.

    There are `least` or more, whatever else holds.
    """

    longest_s: float = math.inf
    most: int | None = None
    least: int = 1

    def num_groups(self, predicted_s: float) -> int:
        """Groups that a sweep of so many seconds should have."""
        wanted = max(self.least, math.ceil(predicted_s / self.longest_s))
        return wanted if self.most is None else min(self.most, wanted)


RESUMABLE = GroupGoal(longest_s=600.0)
"""With --resume: what a crash may cost."""
BEFORE_DEADLINE = GroupGoal(longest_s=1.0, most=10)
"""With --deadline: how finely the time that is left can be used."""
