"""The process around a peer: another interpreter, reasons why there is no answer, nothing left behind."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from strata.engine.types import InputError
from strata.scripts.bench.peers import exchange
from strata.scripts.bench.peers.runner import COMMANDS, PEERS, measure_peer

from .peer_work import make_job, naive_scores


def fake_interpreter(folder: Path, script: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("""echo '{"missing": "needs airllm"}'""", "needs airllm"),
        ("echo first >&2; echo no memory >&2; exit 3", "ended with status 3: no memory"),
        ("exit 1", "ended with status 1: it printed nothing"),
        ("echo done", "gave no usable answer: last line 'done': expected a JSON object"),
        ("exec sleep 30", "took more than 0.2 s"),
    ],
)
def test_runner_says_why_a_peer_gave_nothing(script, reason, tmp_path):
    python = fake_interpreter(tmp_path, script)
    timeout_s = 0.2 if "sleep" in script else None
    work = tmp_path / "work"
    assert measure_peer("airllm", make_job(tmp_path, work), python=python, timeout_s=timeout_s) == reason
    assert list(work.iterdir()) == []


def test_interpreter_without_strata_is_given_strata_and_nothing_else(tmp_path):
    python = fake_interpreter(tmp_path, f'exec "{sys.executable}" -S "$@"')
    reason = measure_peer("accelerate_disk", make_job(tmp_path, tmp_path / "work"), python=python)
    assert reason == "ended with status 1: ModuleNotFoundError: No module named 'numpy'"


def test_peers_need_nothing_of_strata_beyond_its_scripts():
    modules = sorted({f"strata.scripts.bench.peers.{module}" for module, *_ in COMMANDS.values()})
    code = (
        f"import sys, {', '.join(modules)}; print([name for name in sys.modules if 'strata.engine' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_peers_interpreter_converts_a_checkpoint_without_the_engine(checkpoint, tmp_path):
    pytest.importorskip("gguf")
    paths = [str(checkpoint("bfloat16")), str(tmp_path / "model.gguf")]
    code = (
        "import sys; sys.modules['strata.engine'] = None\n"
        "from pathlib import Path; from strata.scripts.bench.peers.gguf_file import write_gguf\n"
        "write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'bf16')"
    )
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    assert (tmp_path / "model.gguf").stat().st_size > 100_000


@pytest.mark.skipif(importlib.util.find_spec("airllm") is not None, reason="airllm is installed")
def test_peer_that_is_not_installed_is_named(tmp_path):
    assert measure_peer("airllm", make_job(tmp_path, tmp_path / "work")) == "needs airllm"


def test_runner_refuses_what_it_cannot_ask(tmp_path):
    job = make_job(tmp_path, tmp_path)
    with pytest.raises(InputError, match="peer 'vllm': expected one of airllm, accelerate_disk"):
        measure_peer("vllm", job)
    with pytest.raises(InputError, match=r"interpreter .*nowhere is no file"):
        measure_peer("airllm", job, python=tmp_path / "nowhere")
    with pytest.raises(InputError, match="questions are empty"):
        measure_peer("airllm", replace(job, questions=[]))
    assert set(PEERS) < set(COMMANDS)


def test_accelerate_in_another_process_scores_as_transformers_does(checkpoint, tmp_path):
    folder = checkpoint("float32")
    expected = naive_scores(folder, torch.float32)
    run = measure_peer("accelerate_disk", make_job(folder, tmp_path))
    assert isinstance(run, exchange.PeerRun), run
    # Two float32 sums of the same terms in another order; scores are of order 0.2.
    np.testing.assert_allclose(run.scores, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1
    assert len(run.question_s) == 2
    assert min(run.question_s) > 0
    assert list(tmp_path.iterdir()) == []
