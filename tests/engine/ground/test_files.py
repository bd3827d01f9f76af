"""Files that are whole or absent whatever happens, and values as JSON."""

import errno
import os
import re
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from strata.engine import files
from strata.engine.files import (
    OutputError,
    to_json,
    write_atomically,
    write_bytes_atomically,
    write_text_atomically,
)


def fail_with_full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_part_then_fail(path):
    path.write_text("half")
    fail_with_full_disk()


def test_atomic_write_replaces_the_old_file_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "out.txt"
    for text in ("old", "new"):
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text) and None)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["out.txt"]


def test_atomic_write_fills_a_temporary_file_in_the_same_folder(tmp_path):
    path, seen = tmp_path / "out.txt", []

    def write(temporary):
        temporary.write_text("text")
        seen.append((temporary.parent, temporary.name, path.exists()))

    write_atomically(path, write)
    ((folder, name, was_there),) = seen
    assert folder == tmp_path
    assert name != path.name
    assert not was_there


def test_atomic_write_leaves_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "out", lambda temporary: temporary.touch())
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "out")}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")])
def test_atomic_write_cleans_up_after_any_exception(tmp_path, error):
    (tmp_path / "out.txt").write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(tmp_path / "out.txt", write)
    assert os.listdir(tmp_path) == ["out.txt"]
    assert (tmp_path / "out.txt").read_text() == "old"


def test_full_disk_while_writing_leaves_nothing_and_names_the_file(tmp_path):
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "out.txt"))) as caught:
        write_atomically(tmp_path / "out.txt", write_part_then_fail)
    assert caught.value.errno == errno.ENOSPC
    assert "No space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_as_the_system_reports_it(tmp_path):
    def write(temporary):
        temporary.symlink_to("/dev/full")
        temporary.write_text("x" * 100_000)

    with pytest.raises(OutputError, match="No space left"):
        write_atomically(tmp_path / "out", write)
    assert os.listdir(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OutputError, match=r"out\.txt"):
        write_atomically(tmp_path / "runs" / "out.txt", lambda temporary: temporary.touch())


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Config:
    model: Path
    sizes: tuple[int, ...] = (1, 2)


def test_to_json_takes_what_runs_hold():
    value = {
        1: np.float32(0.5),
        "nan": [float("nan"), float("inf"), np.float64("-inf"), np.array([1.0, np.nan])],
        "config": Config(model=Path("models") / "m"),
        "flags": {np.bool_(True), True},
        "set": {"b", "a"},
        "enum": Colour.RED,
        "type": np.dtype("int8"),
    }
    assert to_json(value) == {
        "1": 0.5,
        "nan": [None, None, None, [1.0, None]],
        "config": {"model": str(Path("models") / "m"), "sizes": [1, 2]},
        "flags": [True],
        "set": ["a", "b"],
        "enum": "red",
        "type": "int8",
    }


def test_text_and_bytes_arrive_as_they_are(tmp_path):
    write_text_atomically(tmp_path / "a" / "text", "caf\u00e9\r\n\rend\n")
    assert (tmp_path / "a" / "text").read_bytes() == b"caf\xc3\xa9\r\n\rend\n"
    write_bytes_atomically(tmp_path / "a" / "bytes", b"\xff\r\n\x00")
    assert (tmp_path / "a" / "bytes").read_bytes() == b"\xff\r\n\x00"
    assert sorted(os.listdir(tmp_path / "a")) == ["bytes", "text"]


@pytest.mark.parametrize(
    "write", [write_text_atomically, lambda path, text: write_bytes_atomically(path, b"")]
)
def test_text_and_bytes_that_cannot_be_written_leave_the_old_file(write, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("old")
    monkeypatch.setattr(files.os, "fsync", fail_with_full_disk)
    with pytest.raises(OutputError, match=r"^cannot write .*out: No space left on device$"):
        write(tmp_path / "out", "new")
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_text_without_a_utf8_form_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(tmp_path / "out", "\ud800")
    assert os.listdir(tmp_path) == []
