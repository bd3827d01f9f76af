"""What Triton kernels compute, found by its interpreter on the CPU, and on a card where there is one.

They run in a process of their own: whether kernels are interpreted is decided as triton is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has wheels for Linux alone")

ROOT = Path(__file__).parents[3]
CHECKS = "tests/kernels/on_triton/checks"


def run_checks(*names: str, **variables: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run(
        [*command, *(f"{CHECKS}/{name}.py" for name in names)],
        cwd=ROOT,
        env=os.environ | variables | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_in_the_interpreter() -> None:
    run_checks("elementwise", "dequant", "attention_parts", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card() -> None:
    run_checks("elementwise", "attention_parts", TRITON_INTERPRET="0")
