"""Files that cannot grow beyond some size, as on a disk that fills up: one line each, nothing is lost.

The limit is the system's own (RLIMIT_FSIZE), so it meets every library's way of writing. Independent check:
the exit status, stderr and the folder, then the same command without a limit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ...processes.fork_server import ForkServer

CHILD = """
import json, resource, sys
from strata.scripts.cli import main

def run(limit, arguments):
    hard = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if limit is None else limit, hard))
    status = main(arguments)
    print("limit", limit, status, file=sys.stderr)
    return status

runs = json.loads(sys.argv[1])
cut_off = [arguments for limit, arguments in runs if run(limit, arguments)]
if sys.argv[2] == "again":
    for arguments in cut_off:
        run(None, arguments)
"""
LIMITS = (100, 1_000, 8_000, 20_000, 60_000, 300_000)


def run_with_limits(
    forks: ForkServer, runs: list[tuple[int | None, list[str]]], *, again: bool
) -> list[tuple[int | None, int, list[str]]]:
    """For each limit in bytes: exit status and lines on stderr of a command, all in one process.

    `again`: then those that failed once more, without a limit.
    """
    done = forks.run(CHILD, json.dumps(runs), "again" if again else "once")
    assert done.returncode == 0, done.stderr
    found, lines = [], []
    for line in done.stderr.splitlines():
        if line.startswith("limit "):
            found.append((*json.loads(f"[{','.join(line.replace('None', 'null').split()[1:])}]"), lines))
            lines = []
        else:
            lines.append(line)
    return found


@pytest.mark.parametrize("command", ["score", "train", "index", "pack"])
def test_a_disk_that_fills_up_is_told_in_one_line(command, checkpoint, questions, tmp_path, forks):
    corpus = tmp_path / "corpus.jsonl"
    pages = (f'{{"id": "{page}", "text": "Page {page} of {page * 7919}."}}\n' for page in range(2000))
    corpus.write_text("".join(pages), encoding="utf-8")
    model = ["--model", str(checkpoint("llama-gqa"))]
    asked = ["--questions", str(questions), "--devices", "cpu"]
    flags = {
        "score": [*model, *asked, "--hidden-store", "disk"],
        "train": [*model, *asked, "--max-steps", "2", "--save-every", "1", "--tensorboard", "no"],
        "index": ["--corpus", str(corpus)],
        "pack": [*model, "--format", "nf4"],
    }[command]
    outs = [tmp_path / f"{command}-{limit}" for limit in LIMITS]
    runs = [(limit, [command, *flags, "--out", str(out)]) for limit, out in zip(LIMITS, outs, strict=True)]
    runs.append((None, [command, *flags, "--out", str(tmp_path / "whole")]))
    is_resumed = command in ("index", "pack")
    found = run_with_limits(forks, runs, again=is_resumed)
    found, again = found[: len(runs)], found[len(runs) :]
    assert found[-1][1] == 0
    refused = [lines for _, status, lines in found if status == 1]
    assert len(refused) >= 2
    for _, status, lines in found:
        assert status in (0, 1), lines
        if status:
            (line,) = (line for line in lines if line.startswith("strata: "))
            assert "File too large" in line or "os error 27" in line or "cannot write" in line
            assert str(tmp_path) in line
    assert [path for path in tmp_path.rglob("*.tmp") if path.suffix == ".tmp"] == []
    if is_resumed:
        assert [status for _, status, _ in again] == [0] * len(refused)
        assert len({content_of(out) for out in [*outs, tmp_path / "whole"]}) == 1


def content_of(folder: Path) -> frozenset[tuple[str, int]]:
    """What a folder holds, but for the names that tantivy draws and what grows with the path or the time."""
    return frozenset(
        (path.name, path.stat().st_size)
        for path in folder.rglob("*")
        if path.suffix in (".parquet", ".safetensors")
    )
