"""Names of the labels that a classifier's rows stand for, as a file beside an adapter or given by the user.

PEFT's folders do not tell them: its loader takes them from the base model's config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from strata.engine.files import read_utf8, write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json
from strata.engine.types import InputError

LABELS_NAME = "labels.json"


class _Id2Label(Schema):
    """What labels.json holds, and config.json among other things."""

    id2label: dict[str, str]


def write_labels(path: Path, labels: Sequence[str]) -> None:
    """Writes `{"id2label": {"0": name, ...}}`, as a transformers config has it.

    Raises:
        OutputError: the file cannot be written.
    """
    named = {str(index): name for index, name in enumerate(labels)}
    write_text_atomically(path, json.dumps({"id2label": named}, indent=2) + "\n")


def read_labels(path: Path) -> tuple[str, ...]:
    """Names of labels in the order of the classifier's rows.

    Args:
        path: JSON with `id2label` (labels.json, or a model's config.json), or a text with a name a line.

    Raises:
        InputError: unreadable, ids other than 0, 1, 2, ..., or a name that is blank or comes twice.
    """
    if path.suffix.lower() != ".json":
        return check_labels(read_utf8(path).splitlines(), str(path))
    return order_labels(check_schema(_Id2Label, read_json(path), str(path)).id2label, str(path))


def order_labels(id2label: Mapping[str, str], where: str) -> tuple[str, ...]:
    """The names by ascending id.

    Raises:
        InputError: ids other than 0, 1, 2, ..., or a name that is blank or comes twice; begins with `where`.
    """
    expected = [str(index) for index in range(len(id2label))]
    missing = next((index for index in expected if index not in id2label), None)
    if missing is not None:
        raise InputError(
            f"{where}: id2label has {len(id2label)} labels but no id {missing}; expected 0, 1, 2, ..."
        )
    return check_labels([id2label[index] for index in expected], where)


def check_labels(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names.

    Raises:
        InputError: none, one that is blank, or one that comes twice; begins with `where`.
    """
    places: dict[str, int] = {}
    for index, name in enumerate(names):
        if not name.strip():
            raise InputError(f"{where}: label {index} has a blank name; expected a text")
        if name in places:
            raise InputError(
                f"{where}: labels {places[name]} and {index} are both {name!r}; expected two names"
            )
        places[name] = index
    if not names:
        raise InputError(f"{where}: no labels; expected one or more")
    return tuple(names)
