"""How an adapter was asked while it was trained: strata.json beside it, which PEFT passes over.

Whoever scores with the adapter asks as it was trained, unless told otherwise. Knows no head and no template.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Literal

from pydantic import Field, field_validator

from strata.engine.files import write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json

SETTINGS_NAME = "strata.json"
TEXT_CLASSIFIER = "classify"
"""A head that goes with another kind of question file: the user names it as the task."""
OF_THE_TEMPLATE = ("chat", "system")
"""Settings that another template than the trained one leaves without a meaning."""


class TrainedSettings(Schema):
    """Settings of a prompt and its head; None, or what changes nothing, where the training left them open.

    Attributes:
        head: what scores options.
        template: a built-in template's name, or a file beside this one.
        max_tokens: the longest prompt.
        normalize: what log-likelihoods are divided by.
        chat: whether prompts are conversations.
        system: their system message.
        debias: `set` where prompts list options unordered.
    """

    head: str | None = None
    template: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    normalize: Literal["none", "char", "byte", "token"] | None = None
    chat: bool = False
    system: str | None = None
    debias: Literal["none", "set"] = "none"

    @field_validator("template")
    @classmethod
    def _is_plain(cls, name: str | None) -> str | None:
        if name is not None and PurePath(name).name != name:
            raise ValueError("expected the name of a template, or of a file in this folder")
        return name

    def differing(self) -> dict[str, str | int | bool]:
        """The settings that say something."""
        plain = TrainedSettings()
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value != getattr(plain, name)}


def write_trained_settings(folder: Path, settings: TrainedSettings, template: Path | None = None) -> None:
    """Leaves strata.json in an adapter's folder.

    Args:
        folder: the adapter's.
        settings: what it says.
        template: a file that is copied beside it, to be its template.

    Raises:
        OutputError: a file cannot be written.
    """
    if template is not None:
        name = f"template{template.suffix}"
        settings = settings.model_copy(update={"template": name})
        shutil.copyfile(template, folder / name)
    write_text_atomically(folder / SETTINGS_NAME, json.dumps(settings.model_dump(), indent=2) + "\n")


def read_trained_settings(folder: Path) -> TrainedSettings | None:
    """What strata.json says, a template of this folder as its path; None without such a file.

    Raises:
        InputError: it is broken.
    """
    file = folder / SETTINGS_NAME
    if not file.is_file():
        return None
    settings = check_schema(TrainedSettings, read_json(file), str(file))
    if settings.template is not None and (folder / settings.template).is_file():
        return settings.model_copy(update={"template": str(folder / settings.template)})
    return settings


def take_settings(folder: Path, given: Collection[str]) -> dict[str, str | int | bool]:
    """The settings of an adapter's folder that its user has not given.

    Args:
        folder: the adapter's.
        given: names of the settings that somebody has chosen.

    Raises:
        InputError: a broken strata.json.
    """
    trained = read_trained_settings(folder)
    settings = {} if trained is None else trained.differing()
    if settings.get("head") == TEXT_CLASSIFIER:
        del settings["head"]
    kept = {*given, *(OF_THE_TEMPLATE if "template" in given else ())}
    return {name: value for name, value in settings.items() if name not in kept}
