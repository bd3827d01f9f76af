"""Whether adapters are merged or side by side, and that a side adapter goes to a device once."""

from __future__ import annotations

import torch

from strata.engine.adapters.lora import LoraWeights
from strata.engine.adapters.lora_linear import wrap_linears
from strata.engine.model.decoder import build_decoder
from strata.engine.model.open_model import BASE_MEMBER, Computing, SideAdapter, open_model
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader

from ...families import CONFIGS

CPU = torch.device("cpu")


def lora_of(out_features: int, in_features: int) -> LoraWeights:
    return LoraWeights(a=torch.randn(2, in_features), b=torch.randn(out_features, 2), scaling=0.5)


def test_the_base_model_is_a_member_without_adapters(checkpoint):
    opened = open_checkpoint(checkpoint("llama-gqa"))
    model = open_model(opened, (), Computing(devices=("cpu", "cpu"), dtype=torch.float32), TensorReader())
    assert [member.name for member in model.members] == [BASE_MEMBER]
    assert len(model.decoders) == len(model.devices) == 2
    assert model.adapter_bytes == 0


def test_an_adapter_is_placed_on_a_device_once():
    config = CONFIGS["llama-gqa"]()
    decoder = build_decoder(config, torch.float32)
    shape = decoder.layer_shapes(0)["self_attn.q_proj.weight"]

    for layer in decoder.layers:
        wrap_linears(layer, {"self_attn.q_proj"})
    layers = tuple({"self_attn.q_proj": lora_of(*shape)} for _ in decoder.layers)
    member = SideAdapter(name="one", layers=layers)
    module = decoder.layers[1].get_submodule("self_attn.q_proj")
    member.activate(decoder, 1, CPU, torch.bfloat16)
    first = module.active
    assert first.a.dtype == torch.bfloat16
    member.activate(decoder, 1, CPU, torch.bfloat16)
    assert module.active is first
    assert member.num_bytes(torch.bfloat16) == len(layers) * 2 * (2 * shape[1] + 2 * shape[0])
