"""The journal of an unfinished index, `building.json`: which shards are whole, and where the next begins.

Also decides whether a folder's work belongs to the same settings and corpus. Knows nothing of how chunks are
made.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from strata.engine.json_files import check_schema, shown
from strata.engine.types import InputError
from strata.retrieval.index.manifest import (
    CHUNKS_PART,
    FORMAT_VERSION,
    MANIFEST_FILE,
    check_digest,
    check_size,
    check_version,
    file_entry,
    read_manifest,
    read_own_json,
    write_json,
)
from strata.retrieval.index.schemas import JournalSchema

JOURNAL_FILE = "building.json"
WORK_FOLDER = "building"
OURS = frozenset({JOURNAL_FILE, WORK_FOLDER, CHUNKS_PART, ".lock"})
LEFT_OVER = ".*.tmp"
"""The names under which `write_atomically` begins files: a process that was killed leaves them."""


@dataclass(kw_only=True)
class BuildProgress:
    """Where a build stands after its last whole shard.

    The shards hold `num_pages` pages wholly (some `num_empty` without text, some `num_dropped` as
    near-duplicates), and of the next page `num_chunks_of_next` chunks.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_pages: int = 0
    num_chunks_of_next: int = 0
    num_chunks: int = 0
    num_empty: int = 0
    num_dropped: int = 0
    is_whole: bool = False


@dataclass(frozen=True, kw_only=True)
class BuildJournal:
    """A build's folder, what it is made of, and its progress (changed in place)."""

    folder: Path
    settings: Mapping[str, Any]
    corpus: Sequence[Mapping[str, Any]]
    progress: BuildProgress

    def note_shard(self, file: str, num_chunks: int, num_chunks_of_next: int) -> None:
        """Enters a shard that was just written, with its chunks and how many of them open the next page."""
        self.progress.files[file] = file_entry(self.folder / file)
        self.progress.num_chunks += num_chunks
        self.progress.num_chunks_of_next = num_chunks_of_next
        self.save()

    def note_end(self) -> None:
        """Enters that the corpus is read to its end."""
        self.progress.is_whole = True
        self.save()

    def save(self) -> None:
        """Writes the journal, whole or not at all."""
        content = {"settings": self.settings, "corpus": list(self.corpus), **asdict(self.progress)}
        write_json(self.folder / JOURNAL_FILE, {"format_version": FORMAT_VERSION, **content})


def open_journal(
    folder: Path, settings: Mapping[str, Any], corpus: Sequence[Mapping[str, Any]]
) -> BuildJournal:
    """Reads the journal of an interrupted build, or starts one.

    Args:
        folder: of the index; may be absent, unfinished or finished.
        settings: of the build.
        corpus: path, size and time of change of each file.

    Raises:
        InputError: the folder holds an index of other settings or another corpus, other files, or a shard
            that is not what the journal says.
    """
    progress = BuildProgress()
    if (folder / MANIFEST_FILE).exists():
        manifest = read_manifest(folder)
        _refuse_other(folder / MANIFEST_FILE, (manifest.settings, manifest.corpus), (settings, corpus))
    elif (folder / JOURNAL_FILE).exists():
        progress = _read_progress(folder, settings, corpus)
    else:
        _refuse_other_files(folder)
    return BuildJournal(folder=folder, settings=settings, corpus=corpus, progress=progress)


def remove_work(folder: Path) -> None:
    """Removes what only an unfinished build needs, and what killed ones left."""
    (folder / JOURNAL_FILE).unlink(missing_ok=True)
    if (folder / WORK_FOLDER).exists():
        shutil.rmtree(folder / WORK_FOLDER)
    for place in (folder, folder / CHUNKS_PART):
        for path in place.glob(LEFT_OVER):
            path.unlink()


def _refuse_other_files(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out: {folder} is a file; expected a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := {name for name in names - OURS if not fnmatchcase(name, f".{JOURNAL_FILE}.*.tmp")}:
        raise InputError(
            f"--out: {folder} holds other files ({min(others)}); expected an empty or new folder"
        )


def _refuse_other(path: Path, found: tuple[Any, Any], wanted: tuple[Any, Any]) -> None:
    """Compares (settings, corpus) of the work in the folder with those of this call."""
    for name in wanted[0]:
        if found[0].get(name) != wanted[0][name]:
            raise InputError(
                f"{path}: made with {name} = {shown(found[0].get(name))}, now it is "
                f"{shown(wanted[0][name])}; expected the same settings, or another --out"
            )
    if list(found[1]) != list(wanted[1]):
        raise InputError(f"{path}: made of another corpus or of files changed since; expected another --out")


def _read_progress(
    folder: Path, settings: Mapping[str, Any], corpus: Sequence[Mapping[str, Any]]
) -> BuildProgress:
    path = folder / JOURNAL_FILE
    content = read_own_json(path, expected="the journal of an interrupted build")
    check_version(path, content, FORMAT_VERSION, "remove the folder and build again")
    check_schema(JournalSchema, content, str(path))
    _refuse_other(path, (content["settings"], content["corpus"]), (settings, corpus))
    progress = BuildProgress(**{entry.name: content[entry.name] for entry in fields(BuildProgress)})
    for file, entry in progress.files.items():
        check_size(folder / file, entry["bytes"])
    for file in list(progress.files)[-1:]:
        check_digest(folder / file, progress.files[file]["sha256"])
    return progress
