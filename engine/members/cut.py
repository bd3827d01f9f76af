"""After which layer a member's head reads, and whether the final norm comes before it. Reads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from strata.engine.adapters.trained_cut import TrainedCut, read_trained_cut
from strata.engine.members.member import Member
from strata.engine.types import InputError
from strata.engine.weights.first_layers import count_layers


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where the sweep of members ends: after `num_layers` (None: all), before or after the final norm."""

    num_layers: int | None = None
    normalizes: bool = True

    def __str__(self) -> str:
        return f"layers {self.num_layers}, norm {self.normalizes}"

    @property
    def is_whole(self) -> bool:
        """Whether the model is computed to its end, as it is trained."""
        return self.num_layers is None and self.normalizes


def choose_cut(members: Sequence[Member], num_layers: int) -> Cut:
    """Where members of one sweep end: as the user says, else as their adapters were trained.

    Args:
        members: they have the same `layers` and `layers_norm`.
        num_layers: of the model.

    Raises:
        InputError: no such layer, or adapters that were trained for another cut.
    """
    asked = members[0]
    cuts = {_cut_of(asked, _trained(member), num_layers): member.name for member in members}
    if len(cuts) > 1:
        told = ", ".join(f"{name!r} ({cut})" for cut, name in cuts.items())
        raise InputError(f"--adapter: trained to end at different layers: {told}; expected the same of all")
    return next(iter(cuts))


def _trained(member: Member) -> TrainedCut | None:
    return None if member.adapter is None else read_trained_cut(member.adapter)


def _cut_of(asked: Member, trained: TrainedCut | None, num_layers: int) -> Cut:
    if asked.layers is None and trained is None:
        return Cut(normalizes=asked.layers_norm is not False)
    given = trained.layers if asked.layers is None and trained is not None else asked.layers
    assert given is not None
    layers = count_layers(given, num_layers)
    normalizes = asked.layers_norm
    if normalizes is None:
        normalizes = trained is None or trained.layers_norm
    if trained is not None and (layers, normalizes) != (trained.layers, trained.layers_norm):
        raise InputError(
            f"--layers {layers}: {asked.adapter} was trained on {trained.layers} layers "
            f"{'with' if trained.layers_norm else 'without'} the final norm; expected the same here"
        )
    return Cut(num_layers=layers, normalizes=normalizes)
