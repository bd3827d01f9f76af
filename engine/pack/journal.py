"""The folder in which a pack grows, and its journal: what is finished, of which source, with which settings.

OUT.partial holds finished files and `pack.json`; it becomes OUT in one rename when everything is there. A
second call goes on only with the same settings and source, since one folder must not hold two kinds of
weights. Knows nothing of tensors but their checksums.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from strata.engine.files import write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.pack.config import GIB
from strata.engine.types import InputError

JOURNAL_FILE = "pack.json"
Digests = dict[str, str]
"""Tensor name -> checksum."""


class Journal(Schema):
    """pack.json: what the content depends on, and checksums of finished files' tensors by file name."""

    settings: dict[str, Any]
    finished: dict[Annotated[str, Field(pattern=r"^[^/\\\x00]+$")], Digests]


def partial_path(out: Path) -> Path:
    """Where a pack for `out` grows."""
    out = out.resolve()
    return out.with_name(out.name + ".partial")


def refuse_occupied(out: Path) -> None:
    """Raises InputError when `out` is anything but absent or an empty folder."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise InputError(f"--out: {out} exists already; expected a new or an empty folder")


class PartialFolder:
    """OUT.partial, held by one process at a time.

    Args:
        out: the folder that it becomes.
        settings: what the content depends on, plain JSON types.

    Attributes:
        path: the folder.
        finished: files that are whole -> checksums of their tensors.

    Raises:
        InputError: another process works in it, or it belongs to other settings or another source.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.path = partial_path(out)
        self.finished: dict[str, Digests] = {}
        self._settings = dict(settings)
        self._lock = -1
        if self.path.exists():
            self._take_lock()
            try:
                self._read_journal()
                for leftover in self.path.glob(".*.tmp"):
                    leftover.unlink()
            except BaseException:
                self.close()
                raise

    def require_room(self, needed_bytes: int) -> None:
        """Compares what is still to be written with the disk's room.

        Raises:
            InputError: there is less.
        """
        existing = next(folder for folder in (self.path, *self.path.parents) if folder.is_dir())
        free_bytes = shutil.disk_usage(existing).free
        if needed_bytes > free_bytes:
            kept = f" beyond the {len(self.finished)} finished file(s)" if self.finished else ""
            raise InputError(
                f"--out: {existing} has {free_bytes / GIB:.2f} GiB free; packing needs "
                f"{needed_bytes / GIB:.2f} GiB{kept}"
            )

    def begin(self) -> None:
        """Makes the folder where there is none."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock < 0:
            self._take_lock()
        self._write_journal()

    def finish(self, name: str, digests: Digests) -> None:
        """Notes that a file is whole."""
        self.finished[name] = digests
        self._write_journal()

    def forget(self, name: str) -> None:
        """Removes a file that turned out to be damaged."""
        self.finished.pop(name, None)
        self._write_journal()
        (self.path / name).unlink(missing_ok=True)

    def publish(self, out: Path) -> None:
        """Gives the folder its final name."""
        os.fsync(self._lock)
        os.rename(self.path, out)
        # OUT is whole with or without the journal.
        with suppress(OSError):
            (out / JOURNAL_FILE).unlink()

    def discard(self) -> None:
        """Removes the folder: its source cannot be packed with these settings."""
        shutil.rmtree(self.path)

    def close(self) -> None:
        """Lets other processes have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        try:
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError:
            raise InputError(f"{self.path}: not a folder; expected none, or an unfinished pack") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(f"{self.path}: another process is packing there; expected to be alone") from None

    def _read_journal(self) -> None:
        file = self.path / JOURNAL_FILE
        if not file.is_file():
            if any(self.path.iterdir()):
                raise InputError(
                    f"{self.path}: no unfinished pack (it has no {JOURNAL_FILE}); remove it first"
                )
            return
        try:
            journal = check_schema(Journal, read_json_object(file), str(file))
        except InputError as error:
            raise InputError(f"{error}; remove {self.path} to begin anew") from None
        found, self.finished = journal.settings, journal.finished
        differing = [name for name in self._settings | found if found.get(name) != self._settings.get(name)]
        if differing:
            there, here = (json.dumps(settings.get(differing[0])) for settings in (found, self._settings))
            raise InputError(
                f"{self.path}: an unfinished pack of another kind: {differing[0]} is {there} there and "
                f"{here} now; finish it with its own settings, or remove the folder"
            )

    def _write_journal(self) -> None:
        text = json.dumps({"settings": self._settings, "finished": self.finished}, indent=1) + "\n"
        write_text_atomically(self.path / JOURNAL_FILE, text)
