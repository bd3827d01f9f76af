"""Fixtures the whole suite shares: tiny checkpoints made once a session, a question file, and a scorer.

Imports nothing that takes long: the process that hands the tests out reads this file too, and runs none.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .processes.fork_server import ForkServer
from .sample_questions import QUESTIONS, write_jsonl

if TYPE_CHECKING:
    from .reference import Reference

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a minute comes first: at the end all but one of the processes would wait for it."""
    items.sort(key=lambda item: "simulated_cuda" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and lose seconds to them when the cores are busy elsewhere.

    In child processes too, whose threads would wait for each other in loops that leave the others no core.
    """
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def attention_operators_of_cuda() -> None:
    """They run on the CPU too, so that a simulated card can call them."""
    from .kernels import cuda_attention_ops

    cuda_attention_ops.install()


@pytest.fixture(scope="session", autouse=True)
def no_progress_bars() -> None:
    """Saving a checkpoint writes nothing to stderr, whichever test is the first to want it."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """Ctrl-C is heard, as on a terminal, even where a script runs the tests in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_calibration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plans know nothing of a calibration that this machine may have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def fast_products() -> Iterator[None]:
    """Every machine is one that is faster in bfloat16 than in float32, and fastest in int8."""
    from strata.engine.machine import product_rates

    rates = product_rates.ProductRates(flop_per_s={"float32": 1e11, "bfloat16": 2e11, "int8": 3e11})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product_rates, "_product_rates", lambda path, measured_on: rates)
        yield


@pytest.fixture(scope="session", autouse=True)
def small_products() -> Iterator[None]:
    """Every sweep samples products as narrow as its model, once: the rate is that of no real layer."""
    from strata.engine.machine import roofline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "WIDTHS", (16, 2048))
        patch.setattr(roofline, "FINAL_S", (0.001, 0.3))
        yield


@pytest.fixture(scope="session", autouse=True)
def commands_asked_once() -> Iterator[None]:
    """Each run records what git says of the checkout: the same for all runs of a session."""
    from strata.engine.results import machine_facts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_facts, "read_command", functools.cache(machine_facts.read_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Only a power cut tells whether bytes were flushed; child processes flush them all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """`forks.run(code, *arguments)`: processes of their own that need no time for imports."""
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four questions of two to five options, one of them without a context, one in French."""
    return write_jsonl(tmp_path_factory.mktemp("questions") / "questions.jsonl", QUESTIONS)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(family, kind="causal_lm")` -> the folder of a tiny random model, made on first use.

    Kinds: causal_lm, classifier, contrast_classifier, sharded (one tensor or two a shard).
    """
    from . import families

    root = tmp_path_factory.mktemp("checkpoints")
    builders = {
        "causal_lm": families.build_causal_lm,
        "classifier": families.build_classifier,
        "contrast_classifier": families.build_contrast_classifier,
        "sharded": functools.partial(families.build_causal_lm, max_shard_size="16KB"),
    }

    @functools.cache
    def build(family: str, kind: str = "causal_lm") -> Path:
        return builders[kind](family, root / f"{family}-{kind}")

    return build


@pytest.fixture(scope="session")
def reference() -> Callable[..., Reference]:
    """`reference(model folder, adapter folder=None, dtype="float32")`, loaded once a session."""
    from .reference import Reference

    return functools.cache(Reference)


@pytest.fixture(scope="session")
def fixed_rates() -> Iterator[None]:
    """Gives the planner a made-up machine: plans repeat, and no run spends 0.2 s on measuring this one."""
    from strata.engine.machine import machine
    from strata.engine.machine.rates import MachineRates

    rates = MachineRates(gemm_flop_per_s=1e11, disk_bytes_per_s=1e9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "measure_rates", lambda *arguments: rates)
        yield


@pytest.fixture
def score(tmp_path: Path, questions: Path, fixed_rates: None) -> Callable[..., object]:
    """`score(model=..., **settings)` -> ScoreRun; float32 and one CPU device unless told otherwise."""
    from strata.engine.config import ScoreConfig
    from strata.engine.run.score import score_questions

    numbers = iter(range(1000))

    def run(**settings: object) -> object:
        defaults = {"questions": questions, "out": tmp_path / f"run{next(numbers)}"}
        defaults |= {"devices": "cpu", "dtype": "float32", "save_prompts": True, "probe": False}
        return score_questions(ScoreConfig.from_flags(**(defaults | settings)))

    return run


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """A real trained Llama next to the repository; tests that need it skip where it is absent."""
    folder = SHARED / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder
