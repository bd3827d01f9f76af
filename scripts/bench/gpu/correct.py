"""What has to be right on a card: copies, attention, scores, and the order of what it does at once.

Independent checks: float64 under a dense mask for attention, the CPU in float32 for scores, the same run
without delays for order.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from strata.engine.config import ScoreConfig
from strata.engine.machine.devices import resolve_dtype
from strata.engine.run.score import score_questions
from strata.engine.sweep.hidden_store import MemoryStore
from strata.engine.sweep.layer_stream import LayerStream
from strata.engine.sweep.pinned import HostMemory
from strata.scripts.bench.gpu.attention_cases import attention_errors
from strata.scripts.bench.gpu.config import GpuBenchConfig
from strata.scripts.bench.gpu.int8_cases import int8_errors, lacks_own_kernels
from strata.scripts.bench.gpu.stages import AcceptanceStage, Figures
from strata.scripts.demo import MODEL, QUESTIONS_PATH

CARD = torch.device("cuda:0")
LARGEST_ATTENTION_ERROR = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float32: 1e-3}
"""Norm of the difference over that of the result; float32 may be computed in TF32."""
LARGEST_INT8_ERROR = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float32: 1e-3}
"""The same of int8 linears: one code may round the other way, where its quotient is all but a tie."""
SHARE_OF_SPREAD = 0.05
"""What scores may differ by, of what options differ by: float16 rounds every layer to 11 bits."""
PLACEMENTS: tuple[dict[str, Any], ...] = (
    {"resident_layers": 0, "hidden_store": "ram", "micro_batch_tokens": 64},
    {"resident_layers": 0, "hidden_store": "device", "num_groups": 2, "micro_batch_tokens": 128},
    {"resident_layers": 1, "hidden_store": "disk", "micro_batch_tokens": 256},
    {},
)
TESTS = Path(__file__).parents[3] / "tests"
TESTS_LIMIT_S = 150.0


def examine_card(config: GpuBenchConfig) -> Figures:
    """What the card and its libraries are; wrong where torch has no kernels for it."""
    capability = torch.cuda.get_device_capability(CARD)
    known = torch.cuda.get_arch_list()
    newest = [name for name in known if name.startswith(f"sm_{capability[0]}")]
    return {
        "ok": bool(newest),
        "name": torch.cuda.get_device_name(CARD),
        "num_devices": torch.cuda.device_count(),
        "capability": list(capability),
        "arch_list": known,
        "cuda": torch.version.cuda,
        "free_and_total_bytes": list(torch.cuda.mem_get_info(CARD)),
        "computes_in": str(resolve_dtype("auto", torch.bfloat16, ("cuda:0",))),
    }


def check_pinned_memory(config: GpuBenchConfig) -> Figures:
    """Host memory is pinned, takes what was asked for, and holds what is copied."""
    size = (1 << 20 if config.tiny else 1 << 30) + 4096
    before = psutil.Process().memory_info().rss
    memory = HostMemory((size,), torch.uint8, CARD)
    taken = psutil.Process().memory_info().rss - before
    is_pinned = memory.tensor.is_pinned()
    there = torch.randint(0, 256, (size,), dtype=torch.uint8, device=CARD)
    memory.tensor.copy_(there, non_blocking=True)
    torch.cuda.synchronize(CARD)
    is_same = torch.equal(memory.tensor, there.cpu())
    memory.close()
    is_exact = config.tiny or taken < 1.2 * size
    ok = is_pinned and is_same and is_exact
    return {"ok": ok, "asked": size, "taken": taken, "pinned": is_pinned, "same": is_same}


def check_peer_copies(config: GpuBenchConfig) -> Figures:
    """Whether copies from card to card are right, which strata does without."""
    if torch.cuda.device_count() < 2:
        return {"why": "one device"}
    there = torch.randint(0, 1 << 30, (1 << (12 if config.tiny else 22),), device=CARD, dtype=torch.int32)
    return {"peer_copies_are_right": torch.equal(there.to("cuda:1").cpu(), there.cpu())}


def check_attention(config: GpuBenchConfig) -> Figures:
    """Every backend that a sweep may take, on odd and on usual trees."""
    dtypes = [torch.float32, torch.float16]
    if torch.cuda.get_device_capability(CARD) >= (8, 0):
        dtypes.append(torch.bfloat16)
    errors, is_right = dict[str, float](), True
    for dtype in dtypes:
        for name, error in attention_errors(dtype, CARD, tiny=config.tiny).items():
            errors[f"{str(dtype).removeprefix('torch.')}, {name}"] = error
            is_right &= error <= LARGEST_ATTENTION_ERROR[dtype]
    return {"ok": is_right, "relative_error": errors}


def check_int8(config: GpuBenchConfig) -> Figures:
    """Every way to compute an int8 linear, our own kernels among them, which have to be there."""
    errors, is_right, lacking = dict[str, float](), True, []
    for dtype in LARGEST_INT8_ERROR:
        name = str(dtype).removeprefix("torch.")
        if lacks_own_kernels(CARD, dtype):
            lacking.append(name)
        for case, error in int8_errors(dtype, CARD, tiny=config.tiny).items():
            errors[f"{name}, {case}"] = error
            is_right &= error <= LARGEST_INT8_ERROR[dtype]
    return {"ok": is_right and not lacking, "own_kernels_lack": lacking, "relative_error": errors}


def check_scores(config: GpuBenchConfig) -> Figures:
    """The bundled model's scores, in each dtype and placement, beside the CPU's in float32."""
    expected = _score(config, "cpu", dtype="float32", devices="cpu")
    spread = max(float(np.ptp(row)) for row in expected)
    differences = {}
    for dtype in ("float32", "float16"):
        for number, (devices, placement) in enumerate(_layouts(config)):
            name = f"{dtype}, {devices}, {placement or 'as planned'}"
            found = _score(config, f"{dtype}-{number}", dtype=dtype, devices=devices, **placement)
            pairs = zip(found, expected, strict=True)
            differences[name] = max(float(np.abs(row - other).max()) for row, other in pairs) / spread
    return {"ok": max(differences.values()) <= SHARE_OF_SPREAD, "difference_over_spread": differences}


def check_order(config: GpuBenchConfig) -> Figures:
    """Copies and reads delayed at random: every layout has to give its own bits again."""
    runs = different = 0
    for number, (devices, placement) in enumerate(_layouts(config)):
        settings = {"dtype": "float16", "devices": devices, **placement}
        expected = _score(config, f"order-{number}", **settings)
        for seed in range(1 if config.tiny else 3):
            with _random_delays(f"{number}-{seed}"):
                found = _score(config, f"order-{number}-{seed}", **settings)
            runs += 1
            different += not all(map(np.array_equal, found, expected))
    return {"ok": different == 0, "runs": runs, "different": different}


def run_gpu_tests(config: GpuBenchConfig) -> Figures:
    """The tests that are marked so, where there is a checkout with tests."""
    if config.tiny or not (TESTS / "engine" / "test_gpu.py").is_file() or find_spec("pytest") is None:
        return {"why": "no checkout with tests, no pytest, or a dry run"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-p", "no:cacheprovider"]
    if find_spec("xdist") is not None:
        command += ["-n", "4"]
    done = subprocess.run(
        [*command, *(str(TESTS / part) for part in ("engine/test_gpu.py", "kernels", "training"))],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=TESTS_LIMIT_S,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    return {"ok": done.returncode == 0, "told": done.stdout[-2000:].splitlines()[-12:]}


def _layouts(config: GpuBenchConfig) -> Sequence[tuple[str, dict[str, Any]]]:
    """Devices and placements, in turns."""
    all_devices = ",".join(f"cuda:{index}" for index in range(min(2, torch.cuda.device_count())))
    placements = PLACEMENTS[:2] if config.tiny else PLACEMENTS
    return list(zip(islice(cycle(("cuda:0", all_devices)), len(placements)), placements, strict=True))


def _score(config: GpuBenchConfig, name: str, **settings: Any) -> list[np.ndarray]:
    """Scores of bundled questions by the bundled model."""
    defaults: dict[str, Any] = {
        "model": MODEL,
        "questions": QUESTIONS_PATH,
        "out": config.folder / "runs" / name,
    }
    defaults |= {"limit": 2 if config.tiny else 16, "head": "letters", "probe": False, "overwrite": True}
    run = score_questions(ScoreConfig.from_flags(**(defaults | settings)))
    return [row.scores for row in run.scores]


@contextmanager
def _random_delays(seed: str) -> Iterator[None]:
    """The device sleeps up to a few milliseconds before copies of layers and reads of hidden states."""
    choice = random.Random(seed)

    def delayed(work: Callable[..., Any]) -> Callable[..., Any]:
        def late(*arguments: Any) -> Any:
            torch.cuda._sleep(choice.choice((0, 0, 200_000, 5_000_000)))
            return work(*arguments)

        return late

    places = ((LayerStream, "_copy_raw"), (MemoryStore, "read"))
    originals = [getattr(owner, name) for owner, name in places]
    for (owner, name), original in zip(places, originals, strict=True):
        setattr(owner, name, delayed(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


CORRECT = (
    AcceptanceStage(name="environment", run=examine_card, limit_s=20),
    AcceptanceStage(name="pinned_memory", run=check_pinned_memory, limit_s=20, ends_all=False),
    AcceptanceStage(name="peer_copies", run=check_peer_copies, limit_s=20, ends_all=False),
    AcceptanceStage(name="attention", run=check_attention, limit_s=60),
    AcceptanceStage(name="int8", run=check_int8, limit_s=60, ends_all=False),
    AcceptanceStage(name="scores", run=check_scores, limit_s=120),
    AcceptanceStage(name="order", run=check_order, limit_s=120),
    AcceptanceStage(name="gpu_tests", run=run_gpu_tests, limit_s=TESTS_LIMIT_S, ends_all=False),
)
