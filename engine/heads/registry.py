"""All heads by name, and which of them a job takes. Knows no formula, checkpoint or adapter."""

from __future__ import annotations

from collections.abc import Sequence

from strata.engine.heads.classifier import Binary, Contrast
from strata.engine.heads.classify import Classify
from strata.engine.heads.head import ANY_NUMBER, Head
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
    "classify": Classify(),
}
"""By the name that `--head` gives."""

AUTO = "auto"
CLASSIFY = "classify"
"""The head that gives texts labels."""
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
    if shapes and not _fits(score_shape, shapes):
        expected = " or ".join(_describe_shape(shape) for shape in shapes)
        hint = ""
        if setting == AUTO and _fits(score_shape, HEADS[CLASSIFY].weight_shapes(hidden_size)):
            hint = ", or --task classify, which scores every label"
        raise InputError(
            f"--head {head.name}: score.weight has shape {list(score_shape or ())}; expected {expected}{hint}"
        )
    return head


def _fits(score_shape: tuple[int, ...] | None, shapes: Sequence[tuple[int, int]]) -> bool:
    """Whether a weight has one of the shapes."""
    if score_shape is None or len(score_shape) != 2:
        return False
    labels, width = score_shape
    return any(
        width == wide and (labels == num or (num == ANY_NUMBER and labels >= 2)) for num, wide in shapes
    )


def _describe_shape(shape: tuple[int, int]) -> str:
    return f"[2 or more, {shape[1]}]" if shape[0] == ANY_NUMBER else str(list(shape))


def _closest_head(score_shape: tuple[int, ...], hidden_size: int) -> Head:
    """The pointwise head that takes a weight of this shape; else one of this width; else the first.

    A classifier of texts is never meant by itself: two of its labels may as well be wrong and right.
    """

    def misfit(head: Head) -> tuple[bool, bool]:
        shapes = head.weight_shapes(hidden_size)
        return not _fits(score_shape, shapes), all(score_shape[1:] != shape[1:] for shape in shapes)

    pointwise = (head for name, head in HEADS.items() if name != CLASSIFY)
    return min((head for head in pointwise if head.weight_shapes(hidden_size)), key=misfit)
