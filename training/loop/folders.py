"""Folders that are whole or absent under their name, whatever happens on the way. Knows no training."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from strata.engine.files import OutputError, flush_to_disk

_ASIDE, _UNFINISHED = ".old", ".tmp"


def write_folder_atomically(folder: Path, fill: Callable[[Path], None]) -> None:
    """Lets `fill` write files into a temporary folder, flushes them and gives the folder its name.

    An older folder of that name is replaced: at any moment, a kill included, the name is absent or whole.

    Args:
        folder: the folder to leave.
        fill: called once with the temporary folder, which exists and is empty.

    Raises:
        OutputError: the system refused (full disk, permission).
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}{_UNFINISHED}")
    aside = temporary.with_suffix(_ASIDE)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                flush_to_disk(file)
        if folder.exists():
            os.replace(folder, aside)
        os.replace(temporary, folder)
        flush_folder(folder.parent)
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise OutputError(error.errno, reason, str(folder)) from error
    except SafetensorError as error:
        # It tells a full disk in words alone.
        raise OutputError(None, " ".join(str(error).split()), str(folder)) from error
    finally:
        remove_tree(temporary)
        remove_tree(aside)


def remove_folder_atomically(folder: Path) -> None:
    """Deletes a folder; a kill on the way leaves no half of it under its name."""
    aside = folder.with_name(f".{folder.name}{_ASIDE}")
    os.replace(folder, aside)
    remove_tree(aside)


def remove_unfinished(parent: Path) -> None:
    """Deletes what interrupted writes and removals have left in a folder."""
    for path in [*parent.glob(f".*{_UNFINISHED}"), *parent.glob(f".*{_ASIDE}")]:
        remove_tree(path)


def flush_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(path: Path) -> None:
    """Deletes a file, link or folder; one that is not there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
