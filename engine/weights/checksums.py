"""The checksums of a packed checkpoint's tensors, in `strata_checksums.json` beside its shards.

    {"algorithm": "sha256", "tensors": {"<shard file name>": {"<tensor name>": "<hexadecimal digest>"}},
     "files": {"config.json": "<hexadecimal digest>"}}

SHA-256 because CPUs have instructions for it: of what hashlib offers only SHA-1 is as fast there, and
BLAKE2b, SHA-512 and MD5 take about twice as long. Hashing lets other threads run. Knows nothing of how bytes
are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from strata.engine.files import write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.types import InputError

CHECKSUMS_FILE = "strata_checksums.json"
ALGORITHM = "sha256"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ChecksumFile(Schema):
    """strata_checksums.json; early ones list no `files`."""

    algorithm: Literal["sha256"]
    tensors: dict[str, dict[str, Digest]]
    files: dict[Annotated[str, Field(pattern=r"^[^/\\\x00]+$")], Digest] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """Digests of a checkpoint folder's tensors: shard file name -> tensor name -> hexadecimal digest."""

    folder: Path
    tensors: Mapping[str, Mapping[str, str]]

    def check(self, file: Path, tensor_name: str, digest: str) -> None:
        """Compares the digest of a tensor's bytes with the one that was noted when it was packed.

        Raises:
            InputError: they differ, or none was noted.
        """
        expected = self.tensors.get(self._shard(file), {}).get(tensor_name)
        if expected is None:
            raise InputError(
                f"{file}: tensor {tensor_name} has no checksum; "
                f"expected one in {self.folder / CHECKSUMS_FILE}"
            )
        if digest != expected:
            raise InputError(
                f"{file}: tensor {tensor_name} is damaged: its {ALGORITHM} is {digest}, expected {expected} "
                f"({CHECKSUMS_FILE}); the file or a cached copy of it was changed after packing"
            )

    def _shard(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix() if file.is_relative_to(self.folder) else str(file)


def start_digest() -> hashlib._Hash:
    """What digests one tensor as its bytes come by: `.update(piece)` for each piece, then `.hexdigest()`."""
    return hashlib.new(ALGORITHM)


def digest_of(view: memoryview | bytes) -> str:
    """Hexadecimal digest of a whole tensor's bytes."""
    return hashlib.new(ALGORITHM, view).hexdigest()


def write_checksums(
    folder: Path, tensors: Mapping[str, Mapping[str, str]], files: Mapping[str, str] | None = None
) -> None:
    """Writes a checkpoint folder's checksum file, whole or not at all.

    Args:
        folder: where the shards are.
        tensors: shard file name -> tensor name -> hexadecimal digest.
        files: names of other files that decide scores, such as config.json -> hexadecimal digest.

    Raises:
        OutputError: the system refuses.
    """
    content: dict[str, object] = {
        "algorithm": ALGORITHM,
        "tensors": {shard: dict(found) for shard, found in tensors.items()},
    }
    if files:
        content["files"] = dict(files)
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_text_atomically(folder / CHECKSUMS_FILE, text)


def read_checksums(folder: Path) -> Checksums:
    """Reads a checkpoint folder's checksum file.

    Raises:
        InputError: there is none, it is not what `write_checksums` leaves, or config.json or another file
            that it lists was changed.
    """
    if folder.is_file():
        raise InputError(
            f"--verify: {folder} has no checksums; expected a checkpoint written by `strata pack`"
        )
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        raise InputError(f"--verify: {path} is missing; expected a checkpoint written by `strata pack`")
    noted = check_schema(ChecksumFile, read_json_object(path, unique_keys=True), str(path))
    for name, digest in noted.files.items():
        _check_small_file(folder / name, digest)
    return Checksums(folder=folder, tensors=noted.tensors)


def _check_small_file(file: Path, expected: str) -> None:
    found = digest_of(file.read_bytes()) if file.is_file() else "missing"
    if found != expected:
        raise InputError(
            f"{file}: was changed after packing: its {ALGORITHM} is {found}, expected {expected} "
            f"({CHECKSUMS_FILE})"
        )
