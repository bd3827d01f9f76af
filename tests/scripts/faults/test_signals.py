"""Ctrl-C and SIGTERM in the middle of a run."""

from __future__ import annotations

import signal
import time

import pytest

SLOW = (
    "import sys, time\n"
    "from strata.engine.sweep.lane_worker import LaneWorker\n"
    "run = LaneWorker.run_layer\n"
    "LaneWorker.run_layer = lambda *call: (time.sleep(0.5), run(*call))[1]\n"
    "from strata.scripts.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


IGNORED = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""As for a job that a script started in the background."""


@pytest.mark.parametrize(
    ("number", "before"),
    [
        pytest.param(signal.SIGINT, "", id="SIGINT"),
        # test_pack_cli.py stops a command in the foreground by SIGTERM.
        pytest.param(signal.SIGTERM, "", id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, IGNORED, id="SIGTERM-in-background"),
    ],
)
def test_a_signal_ends_a_run_and_is_told(number, before, checkpoint, questions, tmp_path, forks):
    out = tmp_path / "out"
    flags = {"--model": checkpoint("llama-gqa"), "--questions": questions, "--out": out}
    flags |= {"--devices": "cpu", "--micro-batch-tokens": 16}
    arguments = [str(text) for pair in flags.items() for text in pair]
    process = forks.start(before + SLOW, "score", *arguments)
    deadline = time.monotonic() + 60
    while not (out / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + number, printed
    assert printed.strip().splitlines()[-1] == "strata: interrupted"
    assert '"interrupted"' in (out / "run.json").read_text()
    assert not (out / "submission.csv").exists()
