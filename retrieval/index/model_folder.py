"""Checks the folder of a sentence-transformers model before the library sees it. Knows no model's meaning."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from strata.engine.json_files import Schema, check_schema, read_json, read_json_object, shown
from strata.engine.model_files.config_file import refuse_model_code
from strata.engine.model_files.tokenizer_files import check_tokenizer_files
from strata.engine.types import InputError

CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"
LIBRARY = "sentence_transformers."
WEIGHTS_ONLY = {"use_safetensors": True}
"""What the library hands to transformers: no pickle is read, whatever the folder holds."""


class EncoderConfigSchema(Schema):
    """Of a model's config.json, what memory and time grow with."""

    num_hidden_layers: int | None = Field(default=None, ge=1, le=1_000)
    hidden_size: int | None = Field(default=None, ge=1, le=1 << 18)
    intermediate_size: int | None = Field(default=None, ge=1, le=1 << 20)
    vocab_size: int | None = Field(default=None, ge=1, le=1 << 24)


class ModuleSchema(Schema):
    """One module of modules.json: the class that it is made of."""

    type: str


def check_model_folder(folder: Path) -> None:
    """Refuses a folder whose JSON is broken, asks for the impossible, or names classes of another library.

    Raises:
        InputError: naming the file and the key.
    """
    for path in sorted(folder.glob("*.json")):
        read_json(path)
    config = folder / CONFIG_FILE
    if config.is_file():
        content = read_json_object(config)
        check_schema(EncoderConfigSchema, content, str(config))
        refuse_model_code(content, str(config))
        check_tokenizer_files(folder)
    modules = folder / MODULES_FILE
    if modules.is_file():
        for number, module in enumerate(_read_modules(modules)):
            if not module.type.startswith(LIBRARY):
                raise InputError(
                    f"{modules}: {number}.type: {shown(module.type)}; expected a class of "
                    "sentence-transformers: no code of a model's own is run"
                )


def _read_modules(path: Path) -> list[ModuleSchema]:
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: holds a {type(content).__name__}; expected a list of modules")
    return [check_schema(ModuleSchema, entry, f"{path}: {number}") for number, entry in enumerate(content)]
