"""Checkpoints that transformers saved with bitsandbytes itself: the weights it decodes, and their scores.

The models' matrices have whole blocks in a row: on CPU, bitsandbytes decodes others with the wrong scales.
"""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from strata.engine.weights.checkpoint import open_checkpoint

from ....families import SHAPE, build_tokenizer, randomize_weights
from .test_decoding import decode

bitsandbytes = pytest.importorskip("bitsandbytes")

CASES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "fp4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


WHOLE_BLOCKS = {**SHAPE, "hidden_size": 64, "intermediate_size": 128}
CONFIGS = {"llama": hf.LlamaConfig, "qwen2": hf.Qwen2Config}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """`plain(family)` -> the folder of a tiny random model."""

    @functools.cache
    def build(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        config = CONFIGS[family](**WHOLE_BLOCKS)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomize_weights(model)
        model.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="module")
def saved(plain, tmp_path_factory):
    """`saved(case, family)` -> (the folder transformers wrote, bitsandbytes' own decoded weights by name)."""

    @functools.cache
    def build(case: str, family: str = "llama") -> tuple[Path, dict[str, torch.Tensor]]:
        folder = tmp_path_factory.mktemp(case)
        model = hf.AutoModelForCausalLM.from_pretrained(
            plain(family),
            quantization_config=hf.BitsAndBytesConfig(**CASES[case]),
            device_map="cpu",
            dtype=torch.float32,
        )
        model.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        weights = {name: own_weight(module) for name, module in model.named_modules() if is_quantised(module)}
        return folder, {f"{name}.weight": weight for name, weight in weights.items()}

    return build


def is_quantised(module: torch.nn.Module) -> bool:
    return isinstance(module, (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt))


def own_weight(module: torch.nn.Module) -> torch.Tensor:
    """What bitsandbytes itself computes with."""
    if isinstance(module, bitsandbytes.nn.Linear8bitLt):
        return bitsandbytes.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    return bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_are_those_bitsandbytes_decodes(case, family, saved):
    folder, weights = saved(case, family)
    checkpoint = open_checkpoint(folder)
    assert len(weights) == 7 * checkpoint.num_layers
    for name, expected in weights.items():
        weight = decode(checkpoint.weights[name.removeprefix("model.")].single)
        # LLM.int8() multiplies by the scale, then by 1/127; strata by their product.
        torch.testing.assert_close(weight, expected, rtol=3e-7 if case == "int8" else 0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_weights_bitsandbytes_decodes(case, saved, plain, reference, score, tmp_path):
    folder, weights = saved(case)
    decoded = tmp_path / "decoded"
    shutil.copytree(plain("llama"), decoded)
    tensors = load_file(decoded / "model.safetensors")
    assert weights.keys() <= tensors.keys()
    save_file(tensors | weights, decoded / "model.safetensors", metadata={"format": "pt"})
    run = score(model=folder, head="yes-no")
    expected = reference(decoded).score(run.out, "yes_no")
    for row in run.scores:
        np.testing.assert_allclose(row.scores, expected[row.question.id], rtol=0, atol=1e-4)
    assert max(np.ptp(scores) for scores in expected.values()) > 0.01


def test_the_files_are_what_the_packers_of_these_tests_write(saved, quantized):
    """Guards the hand-made layouts: the same names, dtypes and number of axes as bitsandbytes' own files."""
    for case, layout in (
        ("nf4", "bitsandbytes-nf4"),
        ("fp4-double", "bitsandbytes-fp4-nested"),
        ("int8", "bitsandbytes-8bit"),
    ):
        theirs, ours = (
            {
                name: (tensor.dtype, tensor.ndim)
                for name, tensor in load_file(folder / "model.safetensors").items()
            }
            for folder in (saved(case)[0], quantized(layout).path)
        )
        assert ours == theirs


def test_transformers_settings_are_understood(saved):
    folder, _ = saved("nf4")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "bitsandbytes"
    assert open_checkpoint(folder).format_name == "nf4"
