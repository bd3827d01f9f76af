"""`strata pack` as a user meets it: exit statuses, what is printed, signals, and what is left on disk."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from strata.engine.weights.checkpoint import open_checkpoint
from strata.scripts.cli import main


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def run(model: Path, out: Path, *flags: str, kind: str = "nf4") -> int:
    return main(["pack", "--model", str(model), "--format", kind, "--out", str(out), *flags])


@pytest.mark.parametrize(
    ("kind", "format_name"),
    [("int8", "int8"), ("nf4", "nf4"), ("bf16", "plain"), ("fp16", "plain"), ("fp32", "plain")],
)
def test_every_format_ends_well_and_says_what_it_did(kind, format_name, checkpoint, out, capsys):
    model = checkpoint("llama-gqa")
    capsys.readouterr()
    assert run(model, out, "--verify", kind=kind) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    last = printed.out.splitlines()[-1]
    assert last.startswith("0.2 MiB -> 0.")
    assert last.endswith(f"MB/s read, verified: {out}")
    assert (f"21 matrices of decoder layers are {kind}" in printed.out) == (format_name != "plain")
    assert open_checkpoint(out).format_name == format_name


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_what_becomes_of_experts_is_said(kind, checkpoint, out, capsys):
    assert run(checkpoint("mixtral"), out, kind=kind) == 0
    told = {"int8": "packed one by one", "nf4": "left plain"}[kind]
    assert f"36 matrices of experts: {told}" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "nested"), [("--double-quant", True), ("--no-double-quant", False)])
def test_both_flags_of_double_quantisation(flag, nested, checkpoint, out):
    assert run(checkpoint("llama-gqa"), out, flag) == 0
    header = (out / "model.safetensors").read_bytes()[:20_000]
    assert (b"nested_absmax" in header) == nested


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--shard-gib", "0"], "strata: --shard-gib: 0.0 is no file size; expected a number above 0"),
        (["--out", "."], "strata: --out: "),
        (["--model", "nowhere"], "strata: nowhere: not a directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, told, checkpoint, out, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    model = checkpoint("llama-gqa")
    capsys.readouterr()
    assert run(model, out, *flags) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(told)
    assert len(printed.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_an_unknown_format_is_a_usage_error(checkpoint, out, capsys):
    assert run(checkpoint("llama-gqa"), out, kind="int3") == 2
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_status_1(checkpoint, tmp_path, capsys):
    model = checkpoint("llama-gqa")
    capsys.readouterr()
    (tmp_path / "file").write_text("x")
    assert run(model, tmp_path / "file" / "out") == 1
    assert capsys.readouterr().err.startswith("strata: ")


SLOW = """
import sys, time
from strata.engine.pack.safetensors_writer import SafetensorsWriter
write = SafetensorsWriter.write
SafetensorsWriter.write = lambda *call: (time.sleep(0.02), write(*call))[1]
from strata.scripts.cli import main
sys.exit(main(sys.argv[1:]))
"""


def has_finished_a_file(partial: Path) -> bool:
    journal = partial / "pack.json"
    return journal.is_file() and "model-00001" in journal.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_finished_and_says_so(number, checkpoint, out, capsys, forks):
    flags = ["--model", str(checkpoint("llama-gqa")), "--out", str(out), "--format", "nf4"]
    flags += ["--shard-gib", repr(20_000 / 2**30)]
    partial = out.with_name("out.partial")
    process = forks.start(SLOW, "pack", *flags)
    deadline = time.monotonic() + 60
    while not has_finished_a_file(partial) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + number, printed
    assert printed.splitlines() == [
        f"strata: interrupted; {partial} keeps the finished files, and the same command goes on from there"
    ]
    assert not out.exists()
    assert list(partial.glob(".*")) == []
    assert main(["pack", *flags]) == 0
    assert "file(s) were finished before" in capsys.readouterr().out
    assert not partial.exists()
