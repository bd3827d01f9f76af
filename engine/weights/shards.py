"""The tensors of a checkpoint folder: of each, the one that counts where several files hold it.

Knows nothing of what the tensors are.
"""

from __future__ import annotations

from pathlib import Path

from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import INDEX_FILE, SINGLE_FILE, read_weight_map, weight_files
from strata.engine.weights.safetensors_file import StoredTensor, read_header


def read_stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors by name; one that several shards hold is that of the shard which the index names.

    Raises:
        InputError: no weights as safetensors, a missing or broken file, a tensor that its shard does not
            hold, or one that several shards hold and the index does not name.
    """
    files = weight_files(folder)
    weight_map = {} if files == [folder / SINGLE_FILE] else read_weight_map(folder)
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if weight_map.get(name, file.name) != file.name:
                continue
            if name in stored:
                raise InputError(
                    f"{file}: holds tensor {name}, as {stored[name].file.name} does, and {INDEX_FILE} does "
                    "not say which counts"
                )
            stored[name] = tensor
    absent = sorted(set(weight_map) - set(stored))
    if absent:
        raise InputError(
            f"{folder / INDEX_FILE}: names tensor {absent[0]}, which {weight_map[absent[0]]} does not hold"
        )
    return stored


def refuse_duplicates(folder: Path) -> None:
    """Refuses shards that hold a tensor twice, for libraries that take the last they meet.

    Raises:
        InputError: two files hold a tensor; or as `read_stored_tensors`.
    """
    holders: dict[str, Path] = {}
    for file in weight_files(folder):
        for name in read_header(file):
            if name in holders:
                raise InputError(
                    f"{file}: holds tensor {name}, as {holders[name].name} does; expected it in one file"
                )
            holders[name] = file
