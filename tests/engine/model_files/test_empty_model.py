"""Models without weights: the same modules and buffers as with them, and nothing drawn."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralModel

from strata.engine.model_files.empty_model import empty_model

CONFIG = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def test_parameters_are_on_the_meta_device_and_buffers_computed():
    with empty_model():
        empty = LlamaForCausalLM(LlamaConfig(vocab_size=50, **CONFIG))
    whole = LlamaForCausalLM(LlamaConfig(vocab_size=50, **CONFIG))
    assert all(weight.is_meta for weight in empty.parameters())
    shapes = {name: weight.shape for name, weight in whole.named_parameters()}
    assert {name: weight.shape for name, weight in empty.named_parameters()} == shapes
    buffers = dict(whole.named_buffers())
    assert buffers
    for name, buffer in empty.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=0, atol=0)


def test_no_random_number_is_drawn_for_what_has_no_memory():
    before = torch.random.get_rng_state()
    with empty_model():
        torch.nn.Linear(4, 4)
        drawn = torch.nn.Embedding(4, 4, device="meta").weight.normal_()
    assert drawn.is_meta
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tensors_with_memory_are_initialised_as_ever():
    with empty_model():
        table = torch.nn.init.normal_(torch.zeros(100, 100))
    assert 0.9 < table.std() < 1.1


def test_experts_that_no_machine_has_memory_for():
    """One tensor of 35 TB: what is made before it is moved to the meta device could not be made."""
    wide = {"hidden_size": 4_096, "intermediate_size": 16_384, "num_local_experts": 65_536}
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32}
    with empty_model():
        model = MixtralModel(MixtralConfig(**wide, **small))
    assert sum(weight.nbytes for weight in model.parameters()) > 35e12
