"""How a run ends when something fails in the middle of a sweep: at once, with its own error, and told.

Also what becomes of numbers: what overflows float16 is computed in float32, and NaN never becomes a score.
"""

import errno
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from strata.engine.model.layer_loader import LayerLoader
from strata.engine.sweep.coordinator import Coordinator
from strata.engine.sweep.lane_worker import LaneWorker
from strata.engine.types import InputError
from strata.engine.weights.tensor_reader import TensorReader
from strata.scripts.cli import main

from ...families import LAYERS_PER_MODEL

pytestmark = [pytest.mark.usefixtures("fixed_rates"), pytest.mark.timeout(60)]

LAST_LAYER = LAYERS_PER_MODEL - 1
PARTLY = 130.0
"""An MLP's weights so much larger overflow in some micro-batches only."""
Change = Callable[[dict[str, torch.Tensor]], None]
STREAMED = {"head": "yes-no", "resident_layers": 0, "micro_batch_tokens": 24}


@pytest.fixture
def assert_threads_end(checkpoint) -> Callable[[], None]:
    """Call it to check that no thread started since the test began is still there some seconds later."""
    checkpoint("llama-gqa")  # transformers' progress bars have a thread of their own, which stays
    before = set(threading.enumerate())

    def check() -> None:
        deadline = time.monotonic() + 3
        while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left

    return check


def assert_run_ended(out: Path, status: str, error: str, message: str) -> None:
    """run.json tells how the run ended, and nothing in the folder looks like a result."""
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == status
    assert record["error"]["type"] == error
    assert message in record["error"]["message"]
    assert not {path.name for path in out.iterdir()} & {"submission.csv", "scores.parquet", "report.html"}


def fail_in(monkeypatch, owner: type, method: str, fails: Callable[..., bool], error: BaseException) -> None:
    """Makes a method raise `error` whenever `fails(self, *arguments)`."""
    original = getattr(owner, method)

    def patched(self, *arguments, **settings):
        if fails(self, *arguments):
            raise error
        return original(self, *arguments, **settings)

    monkeypatch.setattr(owner, method, patched)


@pytest.mark.parametrize("publishes", [True, False], ids=["first device", "second device"])
@pytest.mark.parametrize("method", ["run_layer", "run_last_layer", "keep_carried"])
def test_a_worker_that_fails_ends_the_run(
    publishes, method, checkpoint, assert_threads_end, score, tmp_path, monkeypatch
):
    # The first device publishes the keys that the second one waits for, and both share the layer reader.
    def fails(worker, layer, *arguments):
        return worker.lane.publishes == publishes and (method == "keep_carried" or layer >= 1)

    fail_in(monkeypatch, LaneWorker, method, fails, RuntimeError("device lost"))
    with pytest.raises(RuntimeError, match="device lost"):
        score(model=checkpoint("llama-gqa"), devices="cpu,cpu", out=tmp_path / "out", **STREAMED)
    assert_threads_end()
    assert_run_ended(tmp_path / "out", "failed", "RuntimeError", "device lost")


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
@pytest.mark.parametrize("num_reads", [4, 20])
def test_a_reader_that_fails_ends_the_run(
    num_reads, devices, num_groups, checkpoint, assert_threads_end, score, tmp_path, monkeypatch
):
    numbers = iter(range(10_000))

    def fails(reader, tensor, *arguments):
        return "layers." in tensor.name and next(numbers) >= num_reads

    fail_in(monkeypatch, TensorReader, "read_into", fails, OSError(errno.EIO, "the disk is gone"))
    with pytest.raises(OSError, match="the disk is gone"):
        score(
            model=checkpoint("llama-gqa"),
            devices=devices,
            num_groups=num_groups,
            out=tmp_path / "out",
            **STREAMED,
        )
    assert_threads_end()
    assert_run_ended(tmp_path / "out", "failed", "OSError", "the disk is gone")


def test_a_file_cut_short_after_its_header_was_checked(
    checkpoint, assert_threads_end, score, tmp_path, monkeypatch
):
    model = shutil.copytree(checkpoint("llama-gqa"), tmp_path / "model")
    file, original = model / "model.safetensors", TensorReader.read_into

    def cut_then_read(self, tensor, *arguments):
        os.truncate(file, min(file.stat().st_size, 20_000))
        return original(self, tensor, *arguments)

    monkeypatch.setattr(TensorReader, "read_into", cut_then_read)
    with pytest.raises(InputError, match=r"model\.safetensors: truncated while reading tensor"):
        score(model=model, out=tmp_path / "out", **STREAMED)
    assert_threads_end()
    assert_run_ended(tmp_path / "out", "failed", "InputError", "truncated while reading")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no room"), KeyboardInterrupt()], ids=repr)
def test_a_failure_before_the_workers_start_stops_the_layer_reader(
    error, checkpoint, assert_threads_end, score, tmp_path, monkeypatch
):
    num_loaded, original_decode = threading.Semaphore(0), LayerLoader.decode

    def decode(self, *arguments):
        weights = original_decode(self, *arguments)
        num_loaded.release()
        return weights

    def fails(*arguments):
        assert num_loaded.acquire(timeout=10)
        assert num_loaded.acquire(timeout=10)
        time.sleep(0.05)  # the reader now waits for a third slot, which nobody will give back
        return True

    monkeypatch.setattr(LayerLoader, "decode", decode)
    fail_in(monkeypatch, LaneWorker, "embed", fails, error)
    with pytest.raises(type(error)):
        score(model=checkpoint("llama-gqa"), out=tmp_path / "out", **STREAMED)
    status = "failed" if isinstance(error, OSError) else "interrupted"
    if json.loads((tmp_path / "out" / "run.json").read_text())["status"] != status:
        raise RuntimeError(f"run.json does not say {status}")
    assert_threads_end()


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_control_c_stops_every_thread(
    devices, checkpoint, assert_threads_end, questions, tmp_path, monkeypatch, capsys
):
    stopped, original_fail, original_layer = threading.Event(), Coordinator.fail, LaneWorker.run_layer

    def fail(self, error):
        original_fail(self, error)
        stopped.set()

    def run_layer(self, layer, *arguments):
        if layer == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert stopped.wait(20), "the main thread did not notice"
        return original_layer(self, layer, *arguments)

    monkeypatch.setattr(Coordinator, "fail", fail)
    monkeypatch.setattr(LaneWorker, "run_layer", run_layer)
    given = ["score", "--model", str(checkpoint("llama-gqa")), "--questions", str(questions)]
    given += ["--devices", devices, "--out", str(tmp_path / "out"), "--head", "yes-no"]
    assert main([*given, "--resident-layers", "0", "--micro-batch-tokens", "24"]) == 1
    captured = capsys.readouterr()
    assert captured.err.strip() == "strata: interrupted"
    assert_threads_end()
    assert_run_ended(tmp_path / "out", "interrupted", "KeyboardInterrupt", "")


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_a_good_run_leaves_no_thread(devices, checkpoint, assert_threads_end, score):
    run = score(model=checkpoint("llama-gqa"), devices=devices, num_groups=2, **STREAMED)
    assert_threads_end()
    assert run.record["status"] == "done"


@pytest.fixture
def altered(checkpoint, tmp_path):
    """`altered(change, family, kind)` -> a copy of a tiny checkpoint, its tensors edited by `change`."""

    def make(change: Change, family: str = "llama-gqa", kind: str = "causal_lm") -> Path:
        folder = shutil.copytree(checkpoint(family, kind), tmp_path / "altered")
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def overflow_mlp(layer: int, scale: float = 400.0) -> Change:
    """The layer's MLP gives more than 65504, float16's largest number; no weight is that large."""

    def change(tensors):
        for name in ("up_proj", "down_proj"):
            tensors[f"model.layers.{layer}.mlp.{name}.weight"] *= scale

    return change


def overflow_values(layer: int) -> Change:
    """The layer's attention values are beyond 65504; its output is not."""

    def change(tensors):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] *= 1e3
        for name, scale in (("q_proj", 1e-3), ("k_proj", 1e-3), ("v_proj", 300.0), ("o_proj", 1e-3)):
            tensors[f"{prefix}self_attn.{name}.weight"] *= scale

    return change


def overflow_final_norm() -> Change:
    """The readouts are beyond 65504; the projection makes up for it."""

    def change(tensors):
        tensors["model.norm.weight"] *= 1e5 / 2
        tensors["lm_head.weight"] *= 2e-5

    return change


def assert_as_in_float32(run, exact) -> None:
    """Equal up to float16's own rounding, about 1e-3 a layer: far less than what the options differ by."""
    tolerance = 0.02 * max(np.ptp(row.scores) for row in exact.scores)
    for row, exact_row in zip(run.scores, exact.scores, strict=True):
        np.testing.assert_allclose(row.scores, exact_row.scores, rtol=0, atol=tolerance)
    assert exact.record["measured"]["float32_micro_batches"] == 0
    assert exact.record["warnings"]["messages"] == []


def assert_overflow_told(run, layer: int) -> None:
    count = run.record["measured"]["float32_micro_batches"]
    assert count > 0
    (message,) = json.loads((run.out / "run.json").read_text())["warnings"]["messages"]
    assert message.startswith(f"{count} micro-batch(es) were not finite")
    assert f"first in layer {layer}" in message


@pytest.mark.parametrize("size", [10_000, 24], ids=["one micro-batch", "prefixes over several"])
@pytest.mark.parametrize("layer", [0, 1, LAST_LAYER])
@pytest.mark.parametrize("overflow", [overflow_mlp, overflow_values])
def test_what_overflows_float16_is_computed_in_float32(overflow, layer, size, altered, score):
    settings = {"model": altered(overflow(layer)), "head": "yes-no", "micro_batch_tokens": size}
    exact, run = score(**settings), score(dtype="float16", **settings)
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, layer)


def test_readouts_that_overflow_float16(altered, score):
    settings = {"model": altered(overflow_final_norm()), "head": "yes-no", "micro_batch_tokens": 24}
    exact, run = score(**settings), score(dtype="float16", **settings)
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, LAST_LAYER)


LAYOUTS = {
    "disk": {"hidden_store": "disk", "resident_layers": 0},
    "two devices, groups": {"devices": "cpu,cpu", "num_groups": 2, "resident_layers": 1},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_micro_batches_that_overflow_are_computed_again(layout, altered, score):
    model = altered(overflow_mlp(1, scale=PARTLY))
    settings = {"model": model, "head": "letters", "debias": "rotate", "micro_batch_tokens": 24}
    exact, run = score(**settings), score(dtype="float16", **settings, **LAYOUTS[layout])
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, 1)
    measured, plan = run.record["measured"], run.record["plan"]
    assert measured["float32_micro_batches"] < plan["num_micro_batches"]
    assert measured["bytes_read"] == plan["bytes_read"]
    assert measured["tokens_computed"] == measured["trie_nodes"]


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_overflow_inside_a_layer_of_other_families(family, altered, score):
    # Gemma 2 normalizes what the MLP gives: its hidden states fit float16 although the MLP's output does not.
    settings = {"model": altered(overflow_mlp(1), family), "head": "yes-no", "micro_batch_tokens": 24}
    exact, run = score(**settings), score(dtype="float16", **settings)
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, 1)


def test_overflow_with_a_classifier_head(altered, score):
    model = altered(overflow_mlp(LAST_LAYER), kind="classifier")
    exact, run = score(model=model), score(model=model, dtype="float16")
    assert_as_in_float32(run, exact)
    assert_overflow_told(run, LAST_LAYER)


@pytest.mark.parametrize("size", [10_000, 24])
def test_a_micro_batch_that_overflows_counts_once(size, altered, score):
    settings = {"head": "yes-no", "micro_batch_tokens": size, "dtype": "float16"}
    run = score(model=altered(overflow_values(LAST_LAYER)), **settings)
    assert run.record["measured"]["float32_micro_batches"] == run.record["plan"]["num_micro_batches"]


def test_float16_without_overflow_says_nothing(checkpoint, score):
    run = score(model=checkpoint("llama-gqa"), head="yes-no", dtype="float16")
    assert run.record["measured"]["float32_micro_batches"] == 0
    assert run.record["warnings"]["messages"] == []


NOT_NUMBERS = {
    "embedding": ("model.embed_tokens.weight", math.nan),
    "keys": ("model.layers.1.self_attn.k_proj.weight", math.nan),
    "infinite": ("model.layers.0.mlp.down_proj.weight", math.inf),
    "last layer": (f"model.layers.{LAST_LAYER}.mlp.up_proj.weight", math.nan),
    "final norm": ("model.norm.weight", math.nan),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("culprit", NOT_NUMBERS)
def test_weights_that_are_not_numbers_end_the_run(culprit, dtype, altered, questions, tmp_path, capsys):
    name, number = NOT_NUMBERS[culprit]
    model = altered(lambda tensors: tensors[name].view(-1)[5::7].fill_(number))
    assert_floating_point_error(model, questions, tmp_path / "out", capsys, "--dtype", dtype)


@pytest.mark.parametrize(
    ("kind", "name"), [("causal_lm", "lm_head.weight"), ("classifier", "score.weight")], ids=["lm", "cls"]
)
def test_an_output_layer_that_is_not_numbers_ends_the_run(kind, name, altered, questions, tmp_path, capsys):
    model = altered(lambda tensors: tensors[name].fill_(math.nan), kind=kind)
    assert_floating_point_error(model, questions, tmp_path / "out", capsys)


def assert_floating_point_error(model: Path, questions: Path, out: Path, capsys, *more: str) -> None:
    given = ["score", "--model", str(model), "--questions", str(questions), "--out", str(out)]
    assert main([*given, "--devices", "cpu", *more]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "not finite" in line
    assert_run_ended(out, "failed", "FloatingPointError", "not finite")
