"""No connection is made at run time: scoring works in a namespace without network, and calls no connect.

The namespace is the system's word for it; where none can be made, Python's audit events are all there is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ...sample_questions import QUESTIONS, write_jsonl

WATCHED = """
import sys

def watch(event, given):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise SystemExit(f"{event} {given[1:]}")

sys.addaudithook(watch)
from strata.scripts.cli import main
sys.argv = ["strata", *sys.argv[1:]]
sys.exit(main())
"""
CONNECTS = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)"


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


def arguments(command: str, model: Path, folder: Path) -> list[str]:
    questions = write_jsonl(folder / "questions.jsonl", QUESTIONS)
    flags = ["--model", str(model), "--questions", str(questions), "--out", str(folder / "out")]
    flags += ["--head", "loglik", "--devices", "cpu"]
    corpus = folder / "corpus.jsonl"
    corpus.write_text('{"id": "a", "text": "The moon pulls on the ocean."}\n')
    index = ["--corpus", str(corpus), "--out", str(folder / "index")]
    return {"score": ["score", *flags], "index": ["index", *index]}[command]


def run(command: list[str], prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Without what would keep libraries offline by itself: strata has to."""
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    return subprocess.run(
        [*prefix, sys.executable, "-c", WATCHED, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["score", "index"])
def test_no_command_connects_to_anything(command: str, checkpoint, tmp_path: Path) -> None:
    """Watched, and without a network where there is a way to have none."""
    prefix = ("unshare", "-rn") if can_unshare() else ()
    done = run(arguments(command, checkpoint("llama-gqa"), tmp_path), prefix)
    assert done.returncode == 0, done.stderr
    made = {"score": tmp_path / "out" / "submission.csv", "index": tmp_path / "index"}
    assert made[command].exists()


def test_a_connection_would_be_noticed() -> None:
    code = WATCHED.partition("from strata")[0] + CONNECTS
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "socket." in done.stderr
