"""`strata pack` short of disk: told before anything is written, or in one line, with nothing half done."""

from __future__ import annotations

import errno
import os
from collections import namedtuple

import pytest

from strata.engine.pack import pack as pack_module
from strata.engine.pack import safetensors_writer
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.types import InputError

from .interrupted_packs import NUM_FILES, changed, contents, interrupt, partial_of

Usage = namedtuple("Usage", "total used free")


def test_the_room_asked_for_is_what_it_takes(config, missing):
    pack_checkpoint(config)
    taken = sum(file.stat().st_size for file in config.out.iterdir())
    assert taken <= missing[0] <= taken + (2 << 20)


def test_what_is_finished_needs_no_room(config, missing, monkeypatch):
    finished = interrupt(config, monkeypatch)
    finished_bytes = sum((partial_of(config) / name).stat().st_size for name in finished)
    assert finished_bytes > 30_000
    pack_checkpoint(config)
    assert missing[0] - missing[1] == finished_bytes


def test_too_little_disk_is_told_before_anything_is_written(config, missing, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pack_module.shutil, "disk_usage", lambda path: Usage(0, 0, 3 << 29))
        pack_checkpoint(changed(config, out=config.out.with_name("fits")))
        patch.setattr(pack_module.shutil, "disk_usage", lambda path: Usage(0, 0, missing[0] - 1))
        with pytest.raises(InputError, match=rf"--out: {config.out.parent} has 0.00 GiB free; packing needs"):
            pack_checkpoint(config)
    assert not config.out.exists()
    assert not partial_of(config).exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_up_leaves_nothing_that_looks_finished(code, config, whole, monkeypatch):
    write, numbers = os.pwrite, iter(range(1, 10_000))

    def full(descriptor, view, offset):
        if next(numbers) > 100:
            raise OSError(code, os.strerror(code))
        return write(descriptor, view, offset)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_writer.os, "pwrite", full)
        told = rf"write \S+\.safetensors: {os.strerror(code)}; .*out.partial keeps [123] of {NUM_FILES} file"
        with pytest.raises(OSError, match=told) as caught:
            pack_checkpoint(config)
    assert caught.value.errno == code
    assert not config.out.exists()
    assert list(partial_of(config).glob(".*")) == []
    pack_checkpoint(config)
    assert contents(config.out) == whole


def test_a_disk_that_fills_up_at_the_small_files(config, whole, monkeypatch):
    with monkeypatch.context() as patch:
        refused = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        patch.setattr(pack_module.shutil, "copyfile", fail(refused))
        with pytest.raises(OSError, match=rf"No space left on device; .* keeps {NUM_FILES} of {NUM_FILES}"):
            pack_checkpoint(config)
    assert not config.out.exists()
    pack_checkpoint(config)
    assert contents(config.out) == whole


def fail(error: Exception):
    def failing(*arguments):
        raise error

    return failing


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from strata.scripts.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_real_limit_on_files_is_told_in_one_line(config, forks):
    flags = {"--model": config.model, "--out": config.out, "--format": "fp32"}
    arguments = [str(text) for pair in flags.items() for text in pair]
    done = forks.run(LIMITED, "pack", *arguments)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("strata: cannot write ")
    assert "model.safetensors: File too large; " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not config.out.exists()
    assert [file.name for file in partial_of(config).iterdir()] == ["pack.json"]
