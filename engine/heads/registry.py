"""All heads by name, and which of them a job takes. Knows no formula, checkpoint or adapter."""

from __future__ import annotations

from strata.engine.heads.classifier import Binary, Contrast
from strata.engine.heads.head import Head
from strata.engine.heads.letters import Letters
from strata.engine.heads.loglik import LogLikelihood
from strata.engine.heads.yes_no import YesNo
from strata.engine.types import InputError

HEADS: dict[str, Head] = {
    "binary": Binary(),
    "contrast": Contrast(),
    "yes-no": YesNo(),
    "letters": Letters(),
    "loglik": LogLikelihood(),
}
"""By the name that `--head` gives."""

AUTO = "auto"
WITHOUT_WEIGHT = "yes-no"
"""The head that `auto` takes where no score weight is stored."""


def choose_head(setting: str, score_shape: tuple[int, ...] | None, hidden_size: int, where: str) -> Head:
    """Finds the head that `--head` means, and checks it against the stored score weight.

    Args:
        setting: a name in HEADS, or auto, which goes by the weight.
        score_shape: shape of `score.weight`; None where none is stored.
        hidden_size: the model's D.
        where: names checkpoint and adapters, for the message that they hold no score weight.

    Raises:
        InputError: an unknown name, a head that lacks its score weight, or a weight of a shape that it does
            not take.
    """
    if setting == AUTO:
        head = HEADS[WITHOUT_WEIGHT] if score_shape is None else _closest_head(score_shape, hidden_size)
    elif setting in HEADS:
        head = HEADS[setting]
    else:
        raise InputError(f"--head {setting!r}: expected {', '.join((AUTO, *HEADS))}")
    shapes = head.weight_shapes(hidden_size)
    if shapes and score_shape is None:
        raise InputError(f"--head {head.name}: {where} hold no score.weight")
    if shapes and score_shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise InputError(
            f"--head {head.name}: score.weight has shape {list(score_shape or ())}; expected {expected}"
        )
    return head


def _closest_head(score_shape: tuple[int, ...], hidden_size: int) -> Head:
    """The head that takes a weight of this shape; else one of this width; else the first that takes any."""

    def misfit(head: Head) -> tuple[bool, bool]:
        shapes = head.weight_shapes(hidden_size)
        return score_shape not in shapes, all(score_shape[1:] != shape[1:] for shape in shapes)

    return min((head for head in HEADS.values() if head.weight_shapes(hidden_size)), key=misfit)
