"""`strata pack` cut short, resumed, short of disk, or on a disk that does not give back what it was given."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import transformers as hf

from strata.engine.pack import pack as pack_module
from strata.engine.pack import safetensors_writer
from strata.engine.pack.config import PackConfig
from strata.engine.pack.journal import PartialFolder
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.pack.safetensors_writer import SafetensorsWriter
from strata.engine.types import InputError

SHARD_GIB = 40_000 / 2**30
NUM_FILES = 4
FIRST = f"model-00001-of-0000{NUM_FILES}.safetensors"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def config(checkpoint, tmp_path) -> PackConfig:
    model = shutil.copytree(checkpoint("qwen2"), tmp_path / "model")
    return PackConfig(model=model, format="nf4", out=tmp_path / "out", shard_gib=SHARD_GIB)


def changed(config: PackConfig, **settings) -> PackConfig:
    return PackConfig(**{name: getattr(config, name) for name in config.__dataclass_fields__} | settings)


def partial_of(config: PackConfig) -> Path:
    return config.out.with_name("out.partial")


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture
def whole(config) -> dict[str, str]:
    """What an uninterrupted pack leaves."""
    out = config.out.with_name("whole")
    pack_checkpoint(changed(config, out=out))
    assert len(list(out.glob("*.safetensors"))) == NUM_FILES
    return contents(out)


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Makes the n-th tensor written raise."""
    write, numbers = SafetensorsWriter.write, iter(range(1, 10_000))

    def failing(self, name, tensor):
        if next(numbers) == number:
            raise error
        write(self, name, tensor)

    monkeypatch.setattr(SafetensorsWriter, "write", failing)


def interrupt(config: PackConfig, monkeypatch: pytest.MonkeyPatch, number: int = 100) -> set[str]:
    """Stops a pack at the n-th tensor; returns the finished files."""
    with monkeypatch.context() as patch:
        fail_at(patch, number, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            pack_checkpoint(config)
    assert not config.out.exists()
    assert list(partial_of(config).glob(".*")) == []
    return {file.name for file in partial_of(config).glob("*.safetensors")}


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


def test_a_killed_process_is_resumed(config, whole):
    arguments = [str(config.model), str(config.out), repr(SHARD_GIB)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, timeout=120)
    assert done.returncode == -9
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


@pytest.fixture
def missing(monkeypatch) -> list[int]:
    """What each pack found that it still has to write."""
    found: list[int] = []
    missing_bytes = pack_module.missing_bytes

    def spy(partial, plan):
        found.append(missing_bytes(partial, plan))
        return found[-1]

    monkeypatch.setattr(pack_module, "missing_bytes", spy)
    return found


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


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from strata.scripts.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_real_limit_on_files_is_told_in_one_line(config):
    flags = {"--model": config.model, "--out": config.out, "--format": "fp32"}
    arguments = [str(text) for pair in flags.items() for text in pair]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "pack", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("strata: cannot write ")
    assert "model.safetensors: File too large; " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not config.out.exists()
    assert [file.name for file in partial_of(config).iterdir()] == ["pack.json"]


MEASURED = """
import sys
from pathlib import Path
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.pack.config import PackConfig
from strata.engine.pack.layout import plan_pack
from strata.engine.results.peak_memory import PeakMemory
config = PackConfig(model=Path(sys.argv[1]), out=Path(sys.argv[2]), format=sys.argv[3], verify=True)
# Imports whatever planning needs.
plan_pack(open_checkpoint(config.model), config)
with PeakMemory(interval_s=0.001) as memory:
    pack_checkpoint(config)
print(memory.peak_bytes - memory.baseline_bytes)
"""
LARGEST_BYTES = 2 * 2048 * 5632


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """300 MB of bfloat16 in matrices of up to 23 MB."""
    config = hf.LlamaConfig(
        vocab_size=1000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=3,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder = tmp_path_factory.mktemp("large")
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").stat().st_size > 270e6
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "matrices"), [("bf16", 1), ("fp32", 3), ("int8", 1.5), ("nf4", 1.5)])
def test_memory_is_that_of_one_matrix(kind, matrices, large, tmp_path):
    command = [sys.executable, "-c", MEASURED, str(large), str(tmp_path / "out"), kind]
    # Otherwise glibc keeps up to 64 MiB of what was freed for itself.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280, env=environment)
    # The matrix as stored and as written, of 21 matrices in the model, and a block of each encoding thread.
    assert int(done.stdout) < matrices * LARGEST_BYTES + 20e6 * (1 + min(os.cpu_count() or 1, 8))
