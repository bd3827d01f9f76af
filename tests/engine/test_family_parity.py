"""Whole runs of many model families, tiny, in float32, against transformers' forward of every path alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from packaging.version import Version

from strata.engine.model.small_config import shrink_config
from strata.engine.types import InputError

from ..families import VOCABULARY_SIZE, save_with_tokenizer

TOLERANCE = 1e-4
NUM_LAYERS = 3

# Families beside those that test_parity.py scores with every head.
MODEL_TYPES = (
    *("afmoe", "apertus", "arcee", "bitnet", "cohere", "cohere2", "cwm", "ernie4_5"),
    *("ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "gemma", "glm", "glm4", "glm4_moe", "granite"),
    *("granitemoe", "granitemoeshared", "helium", "hyperclovax", "internlm3", "jais2", "minimax_m2"),
    *("ministral3", "olmo", "olmo3", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "seed_oss", "smollm3"),
    *("starcoder2", "vaultgemma"),
)

# What transformers 5.0 does not know yet, or cannot build or save from the family's own config.
LATER = ("exaone_moe", "hyperclovax", "internlm3", "ministral3", "phimoe")
# What transformers 5.0 cannot load itself: an activation of its asks the meta device for a number.
BUILT = ("apertus",)
IS_EARLY = Version(hf.__version__) < Version("5.5")


def small(model_type: str) -> hf.PreTrainedConfig:
    """The family's default config with three narrow layers, and a vocabulary of the tests' tokenizer."""
    config = shrink_config(hf.AutoConfig.for_model(model_type), NUM_LAYERS, is_narrow=False)
    config.vocab_size = VOCABULARY_SIZE
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    return config


def randomize(model: torch.nn.Module) -> None:
    """Matrices of a gain above one; what has one dimension is moved off its neutral value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in sorted(model.state_dict().items()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(1.5 * noise * weight.shape[-1] ** -0.5)
            else:
                weight.add_(0.2 * noise)


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if not (IS_EARLY and name in LATER)])
def test_option_log_likelihoods(model_type, reference, score, tmp_path):
    model = hf.AutoModelForCausalLM.from_config(small(model_type), dtype=torch.float32)
    randomize(model)
    folder = save_with_tokenizer(model, tmp_path / "model")
    run = score(model=folder, head="loglik", normalize="none")
    whole = reference(folder)
    if IS_EARLY and model_type in BUILT:
        whole.causal_lm = model.eval()
    expected = whole.score(run.out, "loglik")
    assert max(np.ptp(scores) for scores in expected.values()) > 1
    for row in run.scores:
        np.testing.assert_allclose(row.scores, expected[row.question.id], rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(not IS_EARLY, reason="this transformers has them all")
@pytest.mark.parametrize("model_type", LATER)
def test_families_of_later_transformers_are_refused(model_type, score, tmp_path):
    try:
        model = hf.AutoModelForCausalLM.from_config(small(model_type), dtype=torch.float32)
    except ValueError as error:
        pytest.skip(f"not in transformers {hf.__version__}: {str(error)[:60]}")
    folder = save_with_tokenizer(model, tmp_path / "model")
    with pytest.raises(InputError, match=f"model type '{model_type}'"):
        score(model=folder, head="loglik", normalize="none")
