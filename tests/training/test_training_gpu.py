"""Training on CUDA: gradients as on the CPU, streamed as resident, QLoRA. Skipped without a device."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from strata.engine.questions.question_file import read_questions
from strata.engine.types import RunWarnings
from strata.training.config import TrainConfig
from strata.training.readers.resident_reader import open_resident_reader
from strata.training.readers.streamed_reader import open_streamed_reader
from strata.training.types import Example, Reader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def config(checkpoint, tmp_path) -> TrainConfig:
    return TrainConfig(
        model=checkpoint("llama-gqa"),
        out=tmp_path,
        questions=Path("q.csv"),
        dtype="float32",
        lora_dropout=0.0,
        devices="cuda:0",
    )


def gradients(reader: Reader, questions: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for group in reader.parameter_groups():
            for _, parameter in sorted(group.parameters.items()):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    prompts = reader.render(read_questions(questions, warnings=RunWarnings()))
    examples = [Example(prompt=prompt, labels=np.eye(len(prompt.question.options))[0]) for prompt in prompts]
    assert np.isfinite(reader.accumulate_gradients(examples, seed=0))
    return {
        name: parameter.grad.cpu()
        for group in reader.parameter_groups()
        for name, parameter in group.parameters.items()
    }


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


def test_gradients_equal_those_of_the_cpu(config, questions, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    on_cpu = gradients(open_resident_reader(replace(config, devices="cpu")), questions)
    assert_close(gradients(open_resident_reader(config), questions), on_cpu, 1e-4)
    streamed = open_streamed_reader(replace(config, streamed=True))
    assert_close(gradients(streamed, questions), on_cpu, 1e-4)
    streamed.close()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_a_base_in_four_bits_learns(config, questions):
    reader = open_resident_reader(replace(config, base_storage="nf4", dtype="bfloat16"))
    linear = reader.trained.decoder.layers[0].self_attn.q_proj.base_layer
    assert type(linear).__name__ == "Linear4bit"
    found = gradients(reader, questions)
    assert all(gradient.isfinite().all() and gradient.norm() > 0 for gradient in found.values())
