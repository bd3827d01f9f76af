"""How a member's classifier calls its labels. Knows no questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from strata.engine.adapters.labels import LABELS_NAME, order_labels, read_labels
from strata.engine.adapters.lora import Adapter
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.checkpoint_folder import CONFIG_FILE


def label_names(
    checkpoint: Checkpoint, adapter: Adapter | None, num_labels: int, given: Path | None
) -> tuple[str, ...]:
    """Names of a member's labels, in the order of its classifier's rows.

    Args:
        checkpoint: the base model, whose config may name them in `id2label`.
        adapter: the member's; names that lie in its folder go before the config's.
        num_labels: rows of the classifier.
        given: the file of --labels, which goes before both.

    Returns:
        LABEL_0, LABEL_1, ... as in transformers, where nobody names so many labels.

    Raises:
        InputError: a file that is broken, or of another number of labels.
    """
    if given is not None:
        return _expect(read_labels(given), num_labels, f"--labels: {given}")
    if adapter is not None and adapter.labels is not None:
        return _expect(adapter.labels, num_labels, str(adapter.path / LABELS_NAME))
    named = getattr(checkpoint.config, "id2label", None) or {}
    if len(named) != num_labels:
        return tuple(f"LABEL_{index}" for index in range(num_labels))
    by_id = {str(index): str(name) for index, name in named.items()}
    return order_labels(by_id, str(checkpoint.path / CONFIG_FILE))


def check_shared(names: Sequence[tuple[str, ...]]) -> None:
    """Raises InputError where the labels of several members differ by more than their order."""
    for other in names[1:]:
        if differing := sorted(set(names[0]) ^ set(other)):
            raise InputError(
                f"members: label {differing[0]!r} is known to some of them only; expected the same labels"
            )


def _expect(names: tuple[str, ...], num_labels: int, where: str) -> tuple[str, ...]:
    if len(names) != num_labels:
        raise InputError(f"{where}: names {len(names)} labels; the classifier has {num_labels}")
    return names
