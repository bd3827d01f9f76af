"""The manifest: what it says comes back, and what does not fit it is refused by name."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from strata.engine import files
from strata.engine.types import InputError
from strata.retrieval.index import manifest as module
from strata.retrieval.index.manifest import (
    Manifest,
    add_part,
    check_part,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manifest(
        tmp_path,
        Manifest(
            settings={"language": "none"}, corpus=({"path": "x", "bytes": 2},), num_pages=3, num_chunks=4
        ),
    )
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "0.npy").write_bytes(b"12345")
    add_part(tmp_path, "dense/e5", ["dense/0.npy"], dim=384)
    return tmp_path


def test_comes_back_as_written(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert (manifest.settings, manifest.corpus) == ({"language": "none"}, ({"path": "x", "bytes": 2},))
    assert (manifest.num_pages, manifest.num_chunks) == (3, 4)
    entry = {"bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
    assert manifest.parts == {"dense/e5": {"files": {"dense/0.npy": entry}, "dim": 384}}
    check_part(folder, manifest, "dense/e5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"format_version": 2}', "format_version is 2; expected 1"),
        ("{}", "format_version is None; expected 1"),
        ('{"format_version": 1}', "settings: field required"),
    ],
)
def test_other_manifests_are_refused(folder: Path, content: str, message: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=f"manifest.json: {message}"):
        read_manifest(folder)


def test_a_manifest_of_other_bytes_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"{}\n\xff")
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read as JSON .*byte 0xff in position 3"):
        read_manifest(folder)


def test_a_folder_without_one_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest.json: not found; expected a folder that `strata index`"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"1234", "4 bytes; expected 5"), (b"12346", "damaged: its SHA-256"), (None, "missing")],
)
def test_changed_files_are_refused(folder: Path, content: bytes | None, message: str) -> None:
    path = folder / "dense" / "0.npy"
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(InputError, match=f"0.npy: {message}"):
        check_part(folder, read_manifest(folder), "dense/e5")


def test_large_parts_are_digested_when_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DIGESTED_BYTES", 4)
    (folder / "dense" / "0.npy").write_bytes(b"54321")
    manifest = read_manifest(folder)
    check_part(folder, manifest, "dense/e5")
    with pytest.raises(InputError, match="damaged"):
        check_part(folder, manifest, "dense/e5", digests=True)


def test_a_missing_part_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="no part 'tantivy'; expected one of: dense/e5"):
        check_part(folder, read_manifest(folder), "tantivy")


def test_a_manifest_that_cannot_be_written_leaves_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    names, before = sorted(folder.iterdir()), read_manifest(folder)
    monkeypatch.setattr(files, "flush_to_disk", fail)
    with pytest.raises(files.OutputError, match=r"cannot write .*manifest\.json: No space left"):
        write_manifest(folder, replace(before, num_pages=9))
    assert read_manifest(folder) == before
    assert sorted(folder.iterdir()) == names


def test_the_manifest_is_json_with_a_version(folder: Path) -> None:
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == 1
