"""`strata pack` cut short and resumed, and folders that it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from strata.engine.pack.journal import PartialFolder
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.types import InputError

from .interrupted_packs import FIRST, NUM_FILES, SHARD_GIB, changed, contents, interrupt, partial_of


@pytest.mark.parametrize("number", [1, 60, 100, 130])
def test_resumed_files_are_those_of_an_uninterrupted_run(number, config, whole, monkeypatch):
    finished = interrupt(config, monkeypatch, number)
    assert len(finished) < NUM_FILES
    kept = {name: (partial_of(config) / name).stat().st_mtime_ns for name in finished}
    report = pack_checkpoint(config)
    assert contents(config.out) == whole
    assert not partial_of(config).exists()
    assert report.num_shards_kept == len(finished)
    assert {name: (config.out / name).stat().st_mtime_ns for name in finished} == kept
    skipped = sum(shard.source_bytes for shard in report.plan.shards if shard.name in finished)
    assert report.num_bytes_read == report.plan.num_source_bytes - skipped


def test_some_of_these_interruptions_leave_finished_files(config, monkeypatch):
    assert FIRST in interrupt(config, monkeypatch, 100)


def test_a_pack_stopped_before_its_last_rename_only_has_that_left(config, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(PartialFolder, "publish", lambda self, out: os.kill(os.getpid(), 2))
        with pytest.raises(KeyboardInterrupt):
            pack_checkpoint(config)
    assert not config.out.exists()
    assert pack_checkpoint(config).num_bytes_read == 0
    assert contents(config.out) == whole


KILLED = """
import sys
from pathlib import Path
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.pack.config import PackConfig
from strata.engine.pack.safetensors_writer import SafetensorsWriter
write, numbers = SafetensorsWriter.write, iter(range(1, 10_000))
def dying(self, name, tensor):
    write(self, name, tensor)
    if next(numbers) == 100:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
SafetensorsWriter.write = dying
model, out = map(Path, sys.argv[1:3])
pack_checkpoint(PackConfig(model=model, format="nf4", out=out, shard_gib=float(sys.argv[3])))
"""


def test_a_killed_process_is_resumed(config, whole, forks):
    arguments = [str(config.model), str(config.out), repr(SHARD_GIB)]
    assert forks.run(KILLED, *arguments).returncode == -9
    assert not config.out.exists()
    assert list(partial_of(config).glob(".*.tmp")) != []
    assert pack_checkpoint(config).num_shards_kept > 0
    assert contents(config.out) == whole


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"format": "int8"}, 'format is "nf4" there and "int8" now'),
        ({"double_quant": False}, "double_quant is true there and false now"),
        ({"shard_gib": 1.0}, "shard_gib is .* there and 1.0 now"),
    ],
)
def test_other_settings_are_refused(settings, told, config, whole, monkeypatch):
    interrupt(config, monkeypatch)
    with pytest.raises(InputError, match=rf"out.partial: an unfinished pack of another kind: {told}; finish"):
        pack_checkpoint(changed(config, **settings))
    pack_checkpoint(config)
    assert contents(config.out) == whole


def test_a_changed_source_is_refused(config, monkeypatch):
    interrupt(config, monkeypatch)
    os.utime(config.model / "model.safetensors", ns=(1, 1))
    with pytest.raises(
        InputError, match=r"size and time of model.safetensors is .* there and \[\d+, 1\] now"
    ):
        pack_checkpoint(config)


def test_a_folder_of_something_else_is_left_alone(config):
    partial_of(config).mkdir()
    (partial_of(config) / "thesis.txt").write_text("draft")
    with pytest.raises(InputError, match=r"out.partial: no unfinished pack \(it has no pack.json\); remove"):
        pack_checkpoint(config)
    assert (partial_of(config) / "thesis.txt").read_text() == "draft"


def test_a_journal_that_cannot_be_read_is_told(config, monkeypatch):
    interrupt(config, monkeypatch)
    (partial_of(config) / "pack.json").write_text("{")
    with pytest.raises(InputError, match=r"pack.json: cannot be read .*; remove .*out.partial"):
        pack_checkpoint(config)


def test_two_processes_do_not_share_a_folder(config, monkeypatch):
    interrupt(config, monkeypatch)
    script = (
        "import fcntl, os, sys, time; f = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(f, fcntl.LOCK_EX); "
    )
    script += "print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", script, str(partial_of(config))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"out.partial: another process is packing there"):
            pack_checkpoint(config)
        other.kill()
    pack_checkpoint(config)


@pytest.mark.parametrize("occupied", ["file", "folder"])
def test_an_output_in_use_is_refused(occupied, config):
    if occupied == "file":
        config.out.write_text("x")
    else:
        config.out.mkdir()
        (config.out / "x").write_text("x")
    with pytest.raises(InputError, match=r"--out: .*out exists already; expected a new or an empty folder"):
        pack_checkpoint(config)
    assert not partial_of(config).exists()


def test_an_empty_output_folder_is_taken(config, whole):
    config.out.mkdir()
    pack_checkpoint(config)
    assert contents(config.out) == whole
