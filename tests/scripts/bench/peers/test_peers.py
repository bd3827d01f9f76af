"""The peers score as transformers does, each as near as its precision allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from strata.scripts.bench.peers import accelerate_disk, airllm, llama_cpp
from strata.scripts.bench.peers.gguf_file import write_gguf
from strata.scripts.bench.workloads.baselines import hf_naive, load_hf_model

from .peer_work import QUESTIONS, dequantize_into, make_job, naive_scores, rms


def test_accelerate_with_a_shared_prefix_scores_the_same(checkpoint, tmp_path):
    folder = checkpoint("float32")
    run = accelerate_disk.measure_accelerate_disk(make_job(folder, tmp_path), share_prefix=True)
    np.testing.assert_allclose(run.scores, naive_scores(folder, torch.float32), atol=1e-5, rtol=0)


def test_accelerate_keeps_no_weight_in_memory(checkpoint, tmp_path):
    model = accelerate_disk._open_model(checkpoint("float32"), tmp_path)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_options_of_different_lengths_are_refused(checkpoint, tmp_path):
    uneven = QUESTIONS[0]._replace(option_ids=(np.arange(3, 5), np.arange(3, 6)))
    job = replace(make_job(checkpoint("float32"), tmp_path), questions=[QUESTIONS[0], uneven])
    with pytest.raises(ValueError, match=r"expected all of one length"):
        accelerate_disk.measure_accelerate_disk(job)


@pytest.mark.parametrize("share_prefix", [False, True])
def test_airllm_scores_as_transformers_does(share_prefix, checkpoint, tmp_path):
    pytest.importorskip("airllm")
    folder = checkpoint("float32")
    run = airllm.measure_airllm(make_job(folder, tmp_path), share_prefix=share_prefix)
    np.testing.assert_allclose(run.scores, naive_scores(folder, torch.float32), atol=1e-5, rtol=0)
    assert list(tmp_path.iterdir()) == []


def test_llama_cpp_in_bfloat16_is_as_near_as_transformers_is(checkpoint, tmp_path):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    folder = checkpoint("bfloat16")
    expected = naive_scores(folder, torch.float32)
    run = llama_cpp.measure_llama_cpp(make_job(folder, tmp_path), "bf16")
    assert rms(run.scores - expected) <= 2 * rms(naive_scores(folder, torch.bfloat16) - expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("matrix_type", ["q8_0", "q4_0"])
def test_llama_cpp_scores_as_its_own_dequantized_weights_do(matrix_type, checkpoint, tmp_path):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    folder = checkpoint("bfloat16")
    write_gguf(folder, tmp_path / "model.gguf", matrix_type)
    model = load_hf_model(folder, dtype=torch.float32, device="cpu")
    dequantize_into(model, tmp_path / "model.gguf")
    expected = hf_naive(model, QUESTIONS).scores
    run = llama_cpp.measure_llama_cpp(make_job(folder, tmp_path), matrix_type)
    # llama.cpp rounds activations to eight bits a block; without the rows' reordering this is above 1.
    assert rms(run.scores - expected) < 0.05 * expected.std()
