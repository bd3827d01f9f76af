"""The manifest of an index folder: what is in it, made how, of which corpus, and each file's checksum.

    {"format_version", "settings", "corpus": [{"path", "bytes", "mtime_ns"}], "num_pages", "num_chunks",
     "parts": {"chunks": {"files": {"chunks/00000.parquet": {"bytes", "sha256"}}}}}

It is written last, so a folder without one is unfinished. Knows nothing of what a part's files mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from strata.engine.files import write_text_atomically
from strata.engine.json_files import AnySchema, check_schema, read_json_object, shown
from strata.engine.types import InputError
from strata.retrieval.index.schemas import ManifestSchema

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
CHUNKS_PART = "chunks"

MAX_DIGESTED_BYTES = 1 << 30
"""Up to this size a part is compared with its SHA-256 whenever it is opened; beyond it, only sizes are."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an index folder holds.

    `parts` maps a part's name to {"files": {path in the folder: {"bytes", "sha256"}}} and whatever else the
    part notes of itself.
    """

    settings: Mapping[str, Any]
    corpus: tuple[Mapping[str, Any], ...]
    num_pages: int
    num_chunks: int
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_manifest(folder: Path) -> Manifest:
    """Reads an index folder's manifest.

    Raises:
        InputError: there is none (no index, or an unfinished one), it is of another version, or a value of it
            is not what it has to be.
    """
    path = folder / MANIFEST_FILE
    content = read_own_json(path, expected="a folder that `strata index` finished")
    check_version(path, content, FORMAT_VERSION, "build the index again")
    check_schema(ManifestSchema, content, str(path))
    return Manifest(
        settings=content["settings"],
        corpus=tuple(content["corpus"]),
        num_pages=content["num_pages"],
        num_chunks=content["num_chunks"],
        parts=content["parts"],
    )


def read_own_json(path: Path, expected: str) -> dict[str, Any]:
    """Reads a JSON file that `strata index` wrote; raises InputError naming it and what was expected."""
    if not path.exists():
        raise InputError(f"{path}: not found; expected {expected}")
    return read_json_object(path)


def check_version(path: Path, content: Mapping[str, Any], version: int, remedy: str) -> None:
    """Refuses a file of another format version."""
    found = content.get("format_version")
    if found != version:
        raise InputError(f"{path}: format_version is {shown(found)}; expected {version}: {remedy}")


def read_part(folder: Path, manifest: Manifest, name: str, schema: type[AnySchema]) -> AnySchema:
    """What a part notes of itself.

    Raises:
        InputError: it notes something else than the schema says.
    """
    return check_schema(schema, manifest.parts[name], f"{folder / MANIFEST_FILE}: parts.{name}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest, whole or not at all."""
    content = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    write_json(folder / MANIFEST_FILE, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes one JSON object, whole or not at all."""
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def add_part(folder: Path, name: str, files: Iterable[Path | str], **notes: object) -> Manifest:
    """Enters a finished part, its files' sizes and SHA-256 into the manifest; replaces a part of that name.

    Args:
        folder: an index folder with a manifest.
        name: e.g. `tantivy` or `dense/gte-base`.
        files: the part's files, as paths within the folder.
        notes: anything JSON can hold that the part's reader wants to know.

    Returns:
        The manifest as it is now.

    Raises:
        InputError: the folder has no readable manifest.
    """
    manifest = read_manifest(folder)
    entries = {Path(file).as_posix(): file_entry(folder / file) for file in files}
    updated = replace(manifest, parts={**manifest.parts, name: {"files": entries, **notes}})
    write_manifest(folder, updated)
    return updated


def file_entry(path: Path) -> dict[str, Any]:
    """A file's size in bytes and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _digest(file: Any) -> Any:
    """`hashlib.file_digest` for Python 3.10."""
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest


def check_part(folder: Path, manifest: Manifest, name: str, *, digests: bool | None = None) -> None:
    """Refuses a part that is missing, cut short or changed.

    Args:
        folder: the index folder.
        manifest: its manifest.
        name: the part to look at.
        digests: compare the SHA-256 of every file too; None does so up to MAX_DIGESTED_BYTES in all.

    Raises:
        InputError: naming the part or the file, and what was expected.
    """
    if name not in manifest.parts:
        found = ", ".join(sorted(manifest.parts)) or "none"
        raise InputError(f"{folder / MANIFEST_FILE}: no part {name!r}; expected one of: {found}")
    files = manifest.parts[name]["files"]
    for file, entry in files.items():
        check_size(folder / file, entry["bytes"])
    if digests is None:
        digests = sum(entry["bytes"] for entry in files.values()) <= MAX_DIGESTED_BYTES
    if digests:
        for file, entry in files.items():
            check_digest(folder / file, entry["sha256"])


def check_size(path: Path, num_bytes: int) -> None:
    """Raises InputError when the file is missing or not of that many bytes."""
    if not path.is_file():
        raise InputError(f"{path}: missing; expected a file of {num_bytes} bytes: build the index again")
    if (found := path.stat().st_size) != num_bytes:
        raise InputError(f"{path}: {found} bytes; expected {num_bytes}: it was cut short or changed")


def check_digest(path: Path, sha256: str) -> None:
    """Raises InputError when the file's SHA-256 is another."""
    if (found := file_entry(path)["sha256"]) != sha256:
        raise InputError(f"{path}: damaged: its SHA-256 is {found}; expected {sha256}")
