"""Checksums, a pack's journal and machine profiles that were changed: refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from strata.engine.machine.profile import read_profile
from strata.engine.pack.config import PackConfig
from strata.engine.pack.journal import PartialFolder
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.weights.checksums import CHECKSUMS_FILE, read_checksums

from .changed_files import DEEP_LIST, DEEP_OBJECT, change_json, refusal


@pytest.fixture
def packed(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint that `strata pack` has written."""
    return pack_checkpoint(PackConfig(model=checkpoint("llama-gqa"), format="bf16", out=tmp_path / "out")).out


@pytest.mark.parametrize("content", [DEEP_OBJECT, DEEP_LIST, "null", "[]", ""])
def test_checksums_that_are_none(content: str, packed: Path) -> None:
    (packed / CHECKSUMS_FILE).write_text(content)
    refusal(lambda: read_checksums(packed), CHECKSUMS_FILE)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"algorithm": 5}, "algorithm"),
        ({"tensors": {"a": {"b": "x"}}}, "tensors.a.b"),
        ({"files": {"../x": "0" * 64}}, "files"),
        ({"files": ["config.json"]}, "files"),
    ],
    ids=str,
)
def test_checksums_of(changes: dict, told: str, packed: Path) -> None:
    change_json(packed / CHECKSUMS_FILE, changes)
    refusal(lambda: read_checksums(packed), CHECKSUMS_FILE, told)


def test_a_config_that_was_changed_after_packing(packed: Path) -> None:
    read_checksums(packed)
    change_json(packed / "config.json", {"rms_norm_eps": 0.5})
    refusal(lambda: read_checksums(packed), "config.json", "changed after packing")
    (packed / "config.json").unlink()
    refusal(lambda: read_checksums(packed), "config.json", "missing")


@pytest.mark.parametrize(
    "content",
    [
        DEEP_OBJECT,
        "[]",
        "{}",
        '{"settings": 1, "finished": {}}',
        '{"settings": {}, "finished": {"../a": {}}}',
    ],
    ids=["deep", "list", "empty", "settings", "path"],
)
def test_a_journal_of(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "pack.json").write_text(content)
    refusal(lambda: PartialFolder(tmp_path / "out", {}), "pack.json", "remove")


@pytest.mark.parametrize("content", [DEEP_LIST, "null", '{"name": 5}', json.dumps({"machine": []})], ids=len)
def test_a_profile_of(content: str, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(content)
    refusal(lambda: read_profile(tmp_path / "machine.json"), "machine.json")
