"""The checksums of a packed checkpoint's tensors, in `strata_checksums.json` beside its shards.

    {"algorithm": "sha256", "tensors": {"<shard file name>": {"<tensor name>": "<hexadecimal digest>"}}}

SHA-256 because CPUs have instructions for it: of what hashlib offers only SHA-1 is as fast there, and
BLAKE2b, SHA-512 and MD5 take about twice as long. Hashing lets other threads run. Knows nothing of how bytes
are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.engine.files import write_text_atomically
from strata.engine.types import InputError

CHECKSUMS_FILE = "strata_checksums.json"
ALGORITHM = "sha256"
DIGEST = re.compile(r"[0-9a-f]{64}")


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


def write_checksums(folder: Path, tensors: Mapping[str, Mapping[str, str]]) -> None:
    """Writes a checkpoint folder's checksum file, whole or not at all.

    Args:
        folder: where the shards are.
        tensors: shard file name -> tensor name -> hexadecimal digest.

    Raises:
        OutputError: the system refuses.
    """
    content = {"algorithm": ALGORITHM, "tensors": {shard: dict(found) for shard, found in tensors.items()}}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_text_atomically(folder / CHECKSUMS_FILE, text)


def read_checksums(folder: Path) -> Checksums:
    """Reads a checkpoint folder's checksum file.

    Raises:
        InputError: there is none, or it is not what `write_checksums` leaves.
    """
    if folder.is_file():
        raise InputError(
            f"--verify: {folder} has no checksums; expected a checkpoint written by `strata pack`"
        )
    path = folder / CHECKSUMS_FILE
    try:
        content = json.loads(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        raise InputError(
            f"--verify: {path} is missing; expected a checkpoint written by `strata pack`"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or content.get("algorithm") != ALGORITHM:
        found = content.get("algorithm") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: the algorithm is {found!r}; expected {ALGORITHM!r}")
    return Checksums(folder=folder, tensors=_checked(path, content.get("tensors")))


def _checked(path: Path, tensors: Any) -> dict[str, dict[str, str]]:
    if not isinstance(tensors, dict):
        raise InputError(f"{path}: no object `tensors`; expected one entry a shard")
    for shard, digests in tensors.items():
        if not isinstance(digests, dict):
            raise InputError(f"{path}: {shard} holds {digests!r}; expected an object of tensor names")
        for name, digest in digests.items():
            if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
                raise InputError(f"{path}: {shard}: {name}: {digest!r}; expected 64 hexadecimal digits")
    return tensors
