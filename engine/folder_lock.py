"""Keeps two runs out of one folder. Knows nothing of what runs leave there.

The lock is the system's (flock): it vanishes with the process, however that ends. Its file, which only names
the holder, goes when the lock is given back; one that a killed process left is taken over.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from strata.engine.files import OutputError
from strata.engine.types import InputError

LOCK_NAME = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path, flag: str, *, beside: bool = False) -> Iterator[None]:
    """Holds a folder for the length of the block.

    Args:
        folder: made when absent; it goes again if nothing was put there.
        flag: what named it, for the message.
        beside: the lock's file lies beside the folder, which is not made: what is written under another name
            and then renamed.

    Raises:
        InputError: another run holds it, or it is a file.
        OutputError: the lock's file cannot be written.
    """
    path = folder.with_name(f".{folder.name}{LOCK_NAME}") if beside else folder / LOCK_NAME
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag}: {folder} is a file; expected a folder")
    is_new = not path.parent.exists()
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{flag}: {folder} is in use by another run{_holder(path)}; expected another folder"
        ) from None
    except OSError as error:
        raise OutputError(error.errno, error.strerror or str(error), str(path)) from None
    try:
        # Who holds it is a courtesy: a full disk is no reason to stop here.
        with contextlib.suppress(OSError):
            path.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        # Removed while it is held: who waits for it then finds that its file is gone, and takes a new one.
        path.unlink(missing_ok=True)
        lock.release()
        if is_new:
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        process, host = path.read_text(encoding="utf-8").split()
        return f" (process {process} on {host})"
    return ""
