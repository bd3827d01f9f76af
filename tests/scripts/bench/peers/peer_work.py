"""What the tests of the peers share: a shape, questions, and the scores of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from strata.engine.plan.shapes import TINY
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.peers.exchange import PeerJob
from strata.scripts.bench.peers.gguf_file import gguf_name
from strata.scripts.bench.workloads.baselines import hf_naive, load_hf_model
from strata.scripts.bench.workloads.synthetic_questions import synthetic_questions

# Quantized blocks are 32 wide.
SHAPE = replace(TINY, intermediate_size=192)
SIZE = QuestionSize(prefix_tokens=40, option_tokens=6, num_options=5)
QUESTIONS = synthetic_questions(2, SIZE, vocab_size=SHAPE.vocab_size)


def make_job(checkpoint: Path, work_folder: Path) -> PeerJob:
    """The shared questions, for one thread."""
    return PeerJob(checkpoint=checkpoint, questions=QUESTIONS, work_folder=work_folder, num_threads=1)


def naive_scores(checkpoint: Path, dtype: torch.dtype) -> np.ndarray:
    return hf_naive(load_hf_model(checkpoint, dtype=dtype, device="cpu"), QUESTIONS).scores


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference**2)))


def dequantize_into(model: torch.nn.Module, path: Path) -> None:
    """Put the weights of a GGUF file, at the precision they have there, into a transformers model."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for name, weight in model.state_dict().items():
        tensor = tensors.pop(gguf_name(name))
        rows = dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape).copy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            half = SHAPE.head_dim // 2
            rows = rows.reshape(-1, half, 2, SHAPE.hidden_size).transpose(0, 2, 1, 3).reshape(rows.shape)
        weight.copy_(torch.from_numpy(rows))
    assert tensors == {}
