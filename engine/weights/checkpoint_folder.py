"""What lies in a checkpoint directory under which name: its config, the index, and the files with weights.

Knows nothing of what the tensors in them are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from transformers import AutoConfig, PreTrainedConfig

from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.model_files.config_file import CONFIG_FILE, read_config_json, refuse_model_code
from strata.engine.model_files.library_errors import one_line
from strata.engine.types import InputError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

ShardName = Annotated[str, Field(max_length=255, pattern=r"^[^/\\\x00]+\.safetensors$")]


class Index(Schema):
    """The index of a checkpoint in shards: tensor name -> name of a file in the same folder."""

    weight_map: dict[str, ShardName]


def read_config(folder: Path) -> PreTrainedConfig:
    """The whole config of a checkpoint, as transformers understands it; nothing is downloaded or run.

    Raises:
        InputError: no such directory, no config in it, a value in it that cannot be, a model that needs code
            of its own folder, or one that transformers cannot read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a directory; --model expects a Hugging Face checkpoint directory")
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder}: no {CONFIG_FILE}; --model expects a Hugging Face checkpoint directory")
    refuse_model_code(read_config_json(folder), str(file))
    with one_line(file, "transformers cannot read it"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights: the one file, else those that the index names.

    So chooses transformers (modeling_utils._get_resolved_checkpoint_files, 5.23). Sorted by name. Whether
    files that an index names are there is for their reader to tell.

    Raises:
        InputError: there are no weights as safetensors, or the index cannot be read.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return [folder / name for name in sorted(set(read_weight_map(folder).values()))]
    others = sorted({file.name for pattern in OTHER_WEIGHTS for file in folder.glob(pattern)})
    pickled = [name for name in others if name.endswith(PICKLES)]
    found = ", ".join(others[:3]) or "no weights"
    if pickled and len(others) == len(pickled):
        found = f"only {pickled[0]}, a pickle, which is never loaded"
    raise InputError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found {found}")


def unread_index(folder: Path) -> str | None:
    """A warning where an index lies beside the one file, which is read; None where there is no choice."""
    if (folder / SINGLE_FILE).is_file() and (folder / INDEX_FILE).is_file():
        return (
            f"{folder}: {SINGLE_FILE} is read, as transformers does; {INDEX_FILE} and its shards are not used"
        )
    return None


def read_weight_map(folder: Path) -> dict[str, str]:
    """What the index says: tensor name -> file name.

    Raises:
        InputError: it is no index, or names a file outside of the folder.
    """
    index = folder / INDEX_FILE
    return check_schema(Index, read_json_object(index), f"{index}: not a safetensors index").weight_map
