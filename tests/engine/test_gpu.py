"""CUDA against CPU: the same scores, streamed and resident, wherever hidden states wait."""

import numpy as np
import pytest
import torch

from strata.engine.memory_errors import MemoryRanOutError

from ..families import LAYERS_PER_MODEL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(120),
]

# Float32 differs in summation order only; float16 rounds each of three layers' activations to 11 bits.
TOLERANCES = {"float32": 1e-4, "float16": 0.05}
PLACEMENTS = {
    "streamed": {"resident_layers": 0, "micro_batch_tokens": 24},
    "one resident": {"resident_layers": 1, "micro_batch_tokens": 64},
    "resident": {"resident_layers": LAYERS_PER_MODEL},
    "groups": {"resident_layers": 1, "num_groups": 2, "micro_batch_tokens": 64},
}
FAMILIES_ON_GPU = ("llama-gqa", "mistral", "gemma2", "mixtral")


def assert_same_scores(run, expected, tolerance: float) -> None:
    for row, expected_row in zip(run.scores, expected.scores, strict=True):
        np.testing.assert_allclose(row.scores, expected_row.scores, rtol=0, atol=tolerance)
    assert run.record["measured"]["bytes_read"] == run.record["plan"]["bytes_read"]
    assert run.record["measured"]["tokens_computed"] == run.record["plan"]["tokens"]


@pytest.mark.parametrize("hidden_store", ["device", "ram", "disk"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_one_device_scores_as_the_cpu(dtype, placement, hidden_store, checkpoint, score):
    flags = {"model": checkpoint("llama-gqa"), "head": "letters", "debias": "rotate"}
    expected = score(**flags)
    flags |= {"devices": "cuda:0", "dtype": dtype, "hidden_store": hidden_store}
    run = score(**flags, **PLACEMENTS[placement])
    assert run.record["plan"]["hidden_store"] == hidden_store
    assert_same_scores(run, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("family", FAMILIES_ON_GPU)
def test_families(family, checkpoint, score):
    flags = {"model": checkpoint(family), "head": "yes-no"}
    run = score(devices="cuda:0", **flags, **PLACEMENTS["streamed"])
    assert_same_scores(run, score(**flags), TOLERANCES["float32"])


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_sets_of_options(family, checkpoint, score):
    flags = {"model": checkpoint(family), "head": "loglik", "debias": "set"}
    run = score(devices="cuda:0", **flags, **PLACEMENTS["groups"])
    assert_same_scores(run, score(**flags), TOLERANCES["float32"])


@pytest.mark.parametrize("kind", ["classifier", "contrast_classifier"])
def test_classifiers(kind, checkpoint, score):
    model = checkpoint("llama-gqa", kind)
    run = score(model=model, devices="cuda:0", **PLACEMENTS["streamed"])
    assert_same_scores(run, score(model=model), TOLERANCES["float32"])


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("devices", ["cuda:0,cuda:0", "cuda:0,cuda:1"])
def test_two_workers_score_as_the_cpu_and_share_one_read(devices, placement, checkpoint, score):
    if "cuda:1" in devices and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    flags = {"model": checkpoint("llama-gqa"), "head": "letters", "debias": "rotate"}
    run = score(devices=devices, **flags, **PLACEMENTS[placement])
    assert_same_scores(run, score(**flags), TOLERANCES["float32"])


def test_streaming_many_times_over_reused_buffers(checkpoint, score):
    # Copies of the next layer run beside the kernels of this one: a missing wait shows as other numbers.
    flags = {"model": checkpoint("llama-gqa"), "head": "loglik", "devices": "cuda:0"}
    first = score(**flags, **PLACEMENTS["streamed"])
    for _ in range(5):
        again = score(**flags, **PLACEMENTS["streamed"])
        for row, first_row in zip(again.scores, first.scores, strict=True):
            np.testing.assert_array_equal(row.scores, first_row.scores)


def test_peak_memory_of_the_device_is_told(checkpoint, score):
    run = score(model=checkpoint("llama-gqa"), head="yes-no", devices="cuda:0")
    assert list(run.record["measured"]["peak_device_bytes"]) == ["cuda:0"]
    assert run.record["measured"]["peak_device_bytes"]["cuda:0"] > 0


def test_auto_devices_are_all_gpus(checkpoint, score):
    run = score(model=checkpoint("llama-gqa"), head="yes-no", devices="auto")
    assert run.record["plan"]["devices"] == [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def test_a_failing_kernel_ends_the_run(checkpoint, score, monkeypatch):
    from strata.engine.sweep.lane_worker import LaneWorker

    def run_layer(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LaneWorker, "run_layer", run_layer)
    with pytest.raises(MemoryRanOutError):
        score(model=checkpoint("llama-gqa"), head="yes-no", devices="cuda:0", **PLACEMENTS["streamed"])
