"""How a run ends when something fails in the middle of a sweep: at once, with its own error, and told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable

import pytest

from strata.engine.model.layer_loader import LayerLoader
from strata.engine.sweep.coordinator import Coordinator
from strata.engine.sweep.lane_worker import LaneWorker
from strata.engine.types import InputError
from strata.engine.weights.tensor_reader import TensorReader
from strata.scripts.cli import main

from .run_folder import assert_run_ended

pytestmark = [pytest.mark.usefixtures("fixed_rates"), pytest.mark.timeout(60)]

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
    def fails(worker, *arguments):
        return worker.lane.publishes == publishes and (method == "keep_carried" or worker._layer >= 1)

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

    def run_layer(self, *arguments):
        if self._layer == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert stopped.wait(20), "the main thread did not notice"
        return original_layer(self, *arguments)

    monkeypatch.setattr(Coordinator, "fail", fail)
    monkeypatch.setattr(LaneWorker, "run_layer", run_layer)
    given = ["score", "--model", str(checkpoint("llama-gqa")), "--questions", str(questions)]
    given += ["--devices", devices, "--out", str(tmp_path / "out"), "--head", "yes-no"]
    assert main([*given, "--resident-layers", "0", "--micro-batch-tokens", "24"]) == 130
    captured = capsys.readouterr()
    assert captured.err.strip() == "strata: interrupted"
    assert_threads_end()
    assert_run_ended(tmp_path / "out", "interrupted", "KeyboardInterrupt", "")


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_a_good_run_leaves_no_thread(devices, checkpoint, assert_threads_end, score):
    run = score(model=checkpoint("llama-gqa"), devices=devices, num_groups=2, **STREAMED)
    assert_threads_end()
    assert run.record["status"] == "done"


def test_interrupts_while_threads_are_waited_for_leave_none_running():
    coordinator, may_end = Coordinator(), threading.Event()
    thread = coordinator.start(may_end.wait, "computes")
    main_thread = threading.main_thread().ident
    for after_s in (0.1, 0.2):
        threading.Timer(after_s, signal.pthread_kill, [main_thread, signal.SIGINT]).start()
    threading.Timer(0.5, may_end.set).start()
    with pytest.raises(KeyboardInterrupt):
        coordinator.stop()
    assert not thread.is_alive()
