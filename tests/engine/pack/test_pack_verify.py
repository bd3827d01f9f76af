"""`strata pack` on a disk that does not give back what it was given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from strata.engine.pack import safetensors_writer
from strata.engine.pack.pack import pack_checkpoint

from .interrupted_packs import FIRST, changed, contents, interrupt, partial_of


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_a_damaged_finished_file_is_packed_again_under_verify(config, whole, monkeypatch):
    interrupt(config, monkeypatch)
    file = partial_of(config) / FIRST
    flip(file, file.stat().st_size - 1)
    report = pack_checkpoint(changed(config, verify=True))
    assert len(report.repaired) == 1
    assert report.repaired[0].startswith(f"{file}: tensor ")
    assert contents(config.out) == whole


def test_a_shortened_finished_file_is_packed_again_in_any_case(config, whole, monkeypatch):
    interrupt(config, monkeypatch)
    os.truncate(partial_of(config) / FIRST, 1000)
    assert "another size" in pack_checkpoint(config).repaired[0]
    assert contents(config.out) == whole


def test_verify_finds_what_the_disk_changed_and_names_it(config, whole, monkeypatch):
    replace = os.replace

    def damage(source, target):
        replace(source, target)
        if Path(target).name == FIRST:
            flip(Path(target), 2000)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_writer.os, "replace", damage)
        with pytest.raises(OSError, match=rf"{FIRST}.*\n?.*(tensor|header)"):
            pack_checkpoint(changed(config, verify=True))
    assert not config.out.exists()
    assert not (partial_of(config) / FIRST).exists()
    pack_checkpoint(changed(config, verify=True))
    assert contents(config.out) == whole
