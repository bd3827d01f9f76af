"""Memory that runs out: micro-batches are cut, scores stay; where nothing helps, one line says what to try.

Independent check: the scores of the same run with memory enough.
"""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from strata.engine.memory_errors import MemoryRanOutError, is_out_of_memory
from strata.engine.model.decoder import Decoder
from strata.engine.model.layer_loader import LayerLoader
from strata.engine.sweep import lane_worker
from strata.engine.sweep.hidden_store import DiskStore, MemoryStore
from strata.engine.sweep.lane_worker import LEAST_TOKENS, LaneWorker
from strata.scripts.cli import main

from .run_folder import assert_run_ended
from .test_overflow import altered, overflow_mlp  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.usefixtures("fixed_rates"), pytest.mark.timeout(120)]

ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of"),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"
    ),
    "NumPy": MemoryError("Unable to allocate 8.00 GiB for an array with shape (1073741824,)"),
}
PLACES = {
    "layer": (Decoder, "run_layer"),
    "carried keys": (LaneWorker, "keep_carried"),
    "hidden states read": (MemoryStore, "read"),
    "hidden states written": (MemoryStore, "write"),
}
NUM_FAILURES = 5
LAYOUTS = {
    "one device": {"devices": "cpu"},
    "two devices, two groups": {"devices": "cpu,cpu", "num_groups": 2, "resident_layers": 1},
}


def fail_at_random(monkeypatch, owner: type, method: str, seed: str) -> list[int]:
    """Lets some calls of a method fail before or after their work; returns where failures are counted.

    Writing hidden states fails before alone: what has replaced its own input cannot be computed again.
    """
    original, choice, failures = getattr(owner, method), random.Random(seed), []
    is_embedding = [False]

    def fails(*arguments, **settings):
        is_hit = not is_embedding[0] and len(failures) < NUM_FAILURES and choice.random() < 0.3
        is_late = method != "write" and choice.random() < 0.5
        found = original(*arguments, **settings) if is_late or not is_hit else None
        if is_hit:
            failures.append(1)
            raise ERRORS[choice.choice(list(ERRORS))]
        return found

    def embed(*arguments, embed=LaneWorker.embed):
        is_embedding[0] = True
        embed(*arguments)
        is_embedding[0] = False

    monkeypatch.setattr(LaneWorker, "embed", embed)
    monkeypatch.setattr(owner, method, fails)
    monkeypatch.setattr(lane_worker, "LEAST_TOKENS", 1)
    return failures


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", PLACES)
def test_scores_are_those_of_a_run_with_memory_enough(place, layout, checkpoint, score, monkeypatch):
    settings = {"model": checkpoint("llama-gqa"), "head": "letters", "debias": "rotate"}
    settings |= {"micro_batch_tokens": 256, **LAYOUTS[layout]}
    enough = score(**settings)
    failures = fail_at_random(monkeypatch, *PLACES[place], seed=f"{place} {layout}")
    run = score(**settings)
    assert_same_scores(run, enough)
    measured, plan = run.record["measured"], run.record["plan"]
    assert measured["halved_micro_batches"] == len(failures) > 0
    assert measured["bytes_read"] == plan["bytes_read"]
    assert measured["tokens_computed"] == measured["trie_nodes"]
    (message,) = json.loads((run.out / "run.json").read_text())["warnings"]["messages"]
    assert message.startswith(f"memory ran out {len(failures)} time(s)")
    assert "--micro-batch-tokens" in message


def assert_same_scores(run, enough) -> None:
    for row, expected in zip(run.scores, enough.scores, strict=True):
        np.testing.assert_allclose(row.scores, expected.scores, rtol=0, atol=2e-5)


def test_micro_batches_that_overflow_are_cut_too(altered, score, monkeypatch):  # noqa: F811
    settings = {"model": altered(overflow_mlp(1, scale=130.0)), "dtype": "float16", "head": "yes-no"}
    settings |= {"micro_batch_tokens": 96, "hidden_store": "disk", "resident_layers": 0}
    enough = score(**settings)
    failures = fail_at_random(monkeypatch, DiskStore, "read", seed="overflow")
    run = score(**settings)
    assert len(failures) > 0
    assert run.record["measured"]["float32_micro_batches"] > 0
    for row, expected in zip(run.scores, enough.scores, strict=True):
        np.testing.assert_allclose(row.scores, expected.scores, rtol=0, atol=0.02 * np.ptp(expected.scores))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("owner", "method"),
    [(Decoder, "run_layer"), (LayerLoader, "read"), (LaneWorker, "embed")],
    ids=["layer", "reader", "embedding"],
)
def test_where_nothing_fits_one_line_says_what_to_try(
    owner, method, error, checkpoint, questions, tmp_path, monkeypatch, capsys
):
    def fail(*arguments, **settings):
        raise ERRORS[error]

    given = ["score", "--model", str(checkpoint("llama-gqa")), "--questions", str(questions)]
    given += ["--out", str(tmp_path / "out"), "--devices", "cpu", "--head", "yes-no"]
    original = Decoder.run_layer
    monkeypatch.setattr(
        owner,
        method,
        # Opening a model rehearses a layer on the meta device.
        lambda *call: original(*call) if len(call) > 2 and is_rehearsal(call[2]) else fail(),
    )
    assert main([*given, "--micro-batch-tokens", "64"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("strata: memory ran out")
    for word in (f"--micro-batch-tokens {LEAST_TOKENS}", "--hidden-store disk", "--num-groups"):
        assert word in line
    assert_run_ended(tmp_path / "out", "failed", "MemoryRanOutError", "memory ran out")


def is_rehearsal(hidden_states: object) -> bool:
    return isinstance(hidden_states, torch.Tensor) and hidden_states.device.type == "meta"


def test_another_error_of_a_layer_is_not_taken_for_it(checkpoint, score, monkeypatch):
    calls = []

    def fail(worker, *arguments):
        calls.append(worker)
        raise RuntimeError("device lost")

    monkeypatch.setattr(LaneWorker, "run_layer", fail)
    with pytest.raises(RuntimeError, match="device lost"):
        score(model=checkpoint("llama-gqa"), head="yes-no")
    assert len(calls) == 1


def test_what_torch_itself_says_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    with pytest.raises(MemoryError) as raised_by_numpy:
        np.empty(1 << 60, np.uint8)
    assert is_out_of_memory(raised_by_numpy.value)
    assert is_out_of_memory(MemoryRanOutError("x"))
    assert not is_out_of_memory(OSError("out of memory"))
