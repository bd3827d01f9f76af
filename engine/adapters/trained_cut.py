"""After which layer an adapter's head was trained to read: a file beside it, which PEFT passes over."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field

from strata.engine.files import write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json

TRAINED_CUT_NAME = "strata_layers.json"


class TrainedCut(Schema):
    """The number of layers, and whether the final norm comes between them and the head."""

    layers: int = Field(ge=1)
    layers_norm: bool


def write_trained_cut(folder: Path, *, layers: int, layers_norm: bool) -> None:
    """Leaves the file in an adapter's folder.

    Raises:
        OutputError: it cannot be written.
    """
    content = TrainedCut(layers=layers, layers_norm=layers_norm)
    write_text_atomically(folder / TRAINED_CUT_NAME, json.dumps(content.model_dump()) + "\n")


def read_trained_cut(folder: Path) -> TrainedCut | None:
    """What the file says; None for an adapter of the whole model.

    Raises:
        InputError: it is broken.
    """
    file = folder / TRAINED_CUT_NAME
    return check_schema(TrainedCut, read_json(file), str(file)) if file.is_file() else None
