"""What lies in a checkpoint directory under which name: its config, the index, and the files with weights.

Knows nothing of what the tensors in them are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from strata.engine.types import InputError

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


def read_config(folder: Path) -> PreTrainedConfig:
    """The whole config of a checkpoint, as transformers understands it; nothing is downloaded.

    Raises:
        InputError: no such directory, no config in it, or one that transformers cannot read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a directory; --model expects a Hugging Face checkpoint directory")
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder}: no {CONFIG_FILE}; --model expects a Hugging Face checkpoint directory")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{file}: transformers cannot read it: {reason}") from None


def read_config_json(folder: Path) -> dict[str, Any]:
    """The config as it is written, without what transformers adds to it.

    Raises:
        InputError: there is none, or it is no JSON object.
    """
    file = folder / CONFIG_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__}; expected a JSON object")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights: those that the index names, else the one file.

    Sorted by name. Whether files that an index names are there is for their reader to tell.

    Raises:
        InputError: there are no weights as safetensors, or the index cannot be read.
    """
    if (folder / INDEX_FILE).is_file():
        return [folder / name for name in sorted(set(read_weight_map(folder).values()))]
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    found = f"only {pickled[0]}, a pickle, which is never loaded" if pickled else "no weights"
    raise InputError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found {found}")


def read_weight_map(folder: Path) -> dict[str, str]:
    """What the index says: tensor name -> file name.

    Raises:
        InputError: it is no index.
    """
    index = folder / INDEX_FILE
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: not a safetensors index ({error})") from None
    return {str(name): str(file) for name, file in weight_map.items()}
