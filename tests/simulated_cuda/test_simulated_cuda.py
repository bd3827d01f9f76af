"""The engine on two cards that are made of CPU tensors: no race, right scores, costs in bounds.

Each run is a process of its own, since the machine takes torch.cuda's place for good; see `make test-sim`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .torch_cuda import can_be_installed

HERE = Path(__file__).parent
TESTS = HERE.parent
ENGINE = "tests/engine"
CHECKS = "tests/simulated_cuda/checks"

FORMATS = f"{ENGINE}/weights/formats/test_scores.py::test_scores_are_those_of_the_decoded_weights"

RUNS = {
    "checks and tests for cards": [
        *(f"{CHECKS}/{name}.py" for name in ("races", "planted", "budgets", "odd_hosts", "heads")),
        f"{ENGINE}/test_gpu.py",
        "-k",
        "checks or (one_device and float16 and (streamed-ram or groups-disk)) "
        "or (two_workers and cuda:1 and groups) "
        "or (families and (gemma2 or mixtral)) or classifiers or failing_kernel",
    ],
    "tests for CPUs, on a card": [
        "--on-device=cuda:0",
        f"{FORMATS}[awq]",
        f"{ENGINE}/model/test_int8.py::test_adapters_apply_to_int8_weights[1]",
        f"{ENGINE}/sweep/test_overflow.py::test_only_the_micro_batches_that_overflow_are_computed_again[disk]",
        f"{ENGINE}/test_invariance.py::test_several_adapters_in_one_sweep_score_as_each_alone[plain]",
    ],
}
SLOW_RUNS = {
    "a dry run of the acceptance": [f"{CHECKS}/acceptance.py"],
    "the same on a card where siblings share": ["--capability=9.0", f"{CHECKS}/acceptance.py"],
    "more tests for CPUs, on a card": [
        "--on-device=cuda:0",
        *(f"{FORMATS}[{layout}]" for layout in ("bitsandbytes-fp4-nested", "gptq-act-order")),
        f"{ENGINE}/test_invariance.py::test_every_family_in_mixed_layouts[gemma3-cut-fine]",
        f"{ENGINE}/test_parity.py::test_language_model_heads[qwen3-letters_rotate]",
    ],
}
CASES = [*RUNS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_RUNS)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_on_simulated_cards(name: str, tmp_path: Path) -> None:
    reason = can_be_installed()
    if reason is not None:
        pytest.skip(reason)
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-p", "simulated_cuda.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--accounts={tmp_path}", "--tb=short", *(RUNS | SLOW_RUNS)[name]],
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    (accounts,) = tmp_path.glob("accounts-*.json")
    found = json.loads(accounts.read_text(encoding="ascii"))
    assert found["tests"] > 0
    assert found["races"] == 0
    assert found["accesses"] > 1000
