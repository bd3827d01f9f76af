"""Each format's files, packed here from known integers, decode to the weights that those mean."""

from contextlib import closing

import pytest
import torch

from strata.engine.model.layer_loader import LayerLoader
from strata.engine.model.weight_routes import LayerForm, route_layer
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.formats.fp8 import Fp8Weight
from strata.engine.weights.formats.registry import collect_weights
from strata.engine.weights.formats.stored_weight import ChannelInt8Weight, PlainWeight
from strata.engine.weights.safetensors_file import StoredTensor
from strata.engine.weights.tensor_reader import TensorReader

from .layouts import LAYOUTS
from .words import float_codes, spread_blocks


def read_parts(weight) -> dict[str, torch.Tensor]:
    with closing(TensorReader()) as reader:
        return {role: reader.read(part) for role, part in weight.parts.items()}


def decode(weight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    out = torch.full(weight.shape, float("nan"), dtype=dtype)
    assert weight.decode(read_parts(weight), out) is out
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_the_integers_times_their_scales(layout, quantized):
    made = quantized(layout)
    checkpoint = open_checkpoint(made.path)
    assert len(made.weights) == 7 * checkpoint.num_layers
    # bitsandbytes multiplies by 1/127, a number of its own rounding; everything else is exact in float32.
    tolerance = 3e-7 if layout == "bitsandbytes-8bit" else 0
    for name, expected in made.weights.items():
        weight = checkpoint.weights[name.removeprefix("model.")].single
        torch.testing.assert_close(decode(weight), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_the_weight_rounded_once(layout, quantized):
    made = quantized(layout)
    weight = open_checkpoint(made.path).weights["layers.1.mlp.down_proj.weight"].single
    expected = made.weights["model.layers.1.mlp.down_proj.weight"].bfloat16()
    assert torch.equal(decode(weight, torch.bfloat16), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_quantised_is_plain(layout, quantized):
    checkpoint = open_checkpoint(quantized(layout).path)
    plain = [name for name, source in checkpoint.weights.items() if isinstance(source.single, PlainWeight)]
    wanted = {"embed_tokens.weight", "norm.weight", "lm_head.weight", "layers.0.input_layernorm.weight"}
    assert wanted <= set(plain)
    assert not any(name.endswith("_proj.weight") for name in plain)


NAMES = {
    "bitsandbytes-nf4": "nf4",
    "bitsandbytes-fp4-nested": "fp4",
    "bitsandbytes-8bit": "int8",
    "gptq": "gptq",
    "awq": "awq",
    "packed": "pack-quantized",
    "int8-channel": "int8",
    "fp8-block": "fp8",
}


@pytest.mark.parametrize("layout", NAMES)
def test_names_of_formats(layout, quantized):
    assert open_checkpoint(quantized(layout).path).format_name == NAMES[layout]


@pytest.mark.parametrize("layout", ["gptq", "awq", "packed-asymmetric", "bitsandbytes-nf4"])
def test_bytes_counted_are_those_of_the_parts_that_decode(layout, quantized):
    weight = open_checkpoint(quantized(layout).path).weights["layers.0.mlp.up_proj.weight"].single
    assert weight.num_bytes == sum(tensor.nbytes for tensor in read_parts(weight).values())
    # Four bits a weight, and at groups of 16 no more than as many again for scales and zero points.
    assert 64 * 32 / 2 < weight.num_bytes < 64 * 32


@pytest.mark.parametrize("layout", ["bitsandbytes-8bit", "int8-channel", "int8-tensor"])
def test_int8_computes_with_the_stored_codes(layout, quantized):
    made, name = quantized(layout), "mlp.up_proj.weight"
    checkpoint = open_checkpoint(made.path)
    weight = checkpoint.layer_sources(0)[name].single
    assert isinstance(weight, ChannelInt8Weight)
    with closing(TensorReader()) as reader:
        form = LayerForm(shapes={name: (64, 32)}, dtype=torch.float32, int8=frozenset([name]))
        loaded = LayerLoader(checkpoint, [route_layer(checkpoint, 0, form)], reader).load(0)
    codes, scale = loaded[name], loaded[name + "_scale"]
    assert torch.equal(codes, read_parts(weight)["codes"])
    assert (scale.dtype, scale.shape) == (torch.float32, (64,))
    expected = made.weights[f"model.layers.0.{name}"]
    torch.testing.assert_close(codes * scale[:, None], expected, rtol=3e-7, atol=0)


def test_four_bit_codes_stored_under_another_dtype(damaged, quantized):
    # bnb_4bit_quant_storage says so: the same bytes, two to a number.
    name = "model.layers.0.mlp.up_proj.weight"
    made = quantized("bitsandbytes-nf4")
    codes = read_parts(open_checkpoint(made.path).weights[name.removeprefix("model.")].single)["codes"]
    path = damaged("bitsandbytes-nf4", {name: codes.view(-1, 2).view(torch.bfloat16)})
    weight = open_checkpoint(path).weights[name.removeprefix("model.")].single
    assert torch.equal(decode(weight), made.weights[name])


def test_an_act_order_that_was_never_set(damaged, quantized):
    name = "layers.0.mlp.up_proj.weight"
    path = damaged("packed", {f"model.{name}_g_idx": torch.full([32], -1, dtype=torch.int32)})
    weight = open_checkpoint(path).weights[name].single
    assert torch.equal(decode(weight), quantized("packed").weights[f"model.{name}"])


def test_groups_of_modules_in_two_formats(damaged, quantized):
    # One config group packs four bits in groups of 16, the other eight bits a channel.
    group = LAYOUTS["packed-8bit-channel"].settings["config_groups"]["group_0"]
    wide, name = quantized("packed-8bit-channel"), "model.layers.0.mlp.up_proj.weight"
    parts = read_parts(open_checkpoint(wide.path).weights[name.removeprefix("model.")].single)
    groups = LAYOUTS["packed"].settings["config_groups"] | {"group_1": group | {"format": "pack-quantized"}}
    changed = {f"{name}_packed": parts["packed"], f"{name}_scale": parts["scale"]}
    path = damaged("packed", changed, config_groups=groups, format="mixed-precision")
    checkpoint = open_checkpoint(path)
    assert torch.equal(decode(checkpoint.weights[name.removeprefix("model.")].single), wide.weights[name])
    other = "model.layers.0.mlp.down_proj.weight"
    narrow = checkpoint.weights[other.removeprefix("model.")].single
    assert torch.equal(decode(narrow), quantized("packed").weights[other])


def test_gptqmodel_overrides_of_single_modules(damaged, quantized):
    made, name = quantized("gptq-2bit-one-group"), "model.layers.2.mlp.up_proj"
    weight = open_checkpoint(made.path).weights["layers.2.mlp.up_proj.weight"].single
    changed = {f"{name}.{role}": tensor for role, tensor in read_parts(weight).items()}
    dynamic = {r"+:.*layers\.2\.mlp\.up.*": {"bits": 2, "group_size": -1}, r"-:.*embed.*": {}}
    checkpoint = open_checkpoint(damaged("gptq", changed, dynamic=dynamic))
    assert torch.equal(
        decode(checkpoint.weights["layers.2.mlp.up_proj.weight"].single), made.weights[f"{name}.weight"]
    )


def test_fused_experts_in_float8():
    generator = torch.Generator().manual_seed(0)
    shape, block = (40, 32), (24, 16)
    codes = torch.stack([float_codes(shape, generator) for _ in range(3)])
    scale = torch.rand(3, 2, 2, generator=generator)
    tensors = {"experts.up_proj": codes, "experts.up_proj_scale_inv": scale}
    dtypes = {"experts.up_proj": "F8_E4M3", "experts.up_proj_scale_inv": "F32"}
    stored = {
        name: StoredTensor(
            name=name,
            file="x",
            dtype=dtypes[name],
            shape=tuple(tensor.shape),
            offset=0,
            num_bytes=tensor.nbytes,
        )
        for name, tensor in tensors.items()
    }
    settings = {"quant_method": "fp8", "weight_block_size": list(block)}
    (weight,) = collect_weights(settings, stored, lambda tensor: tensors[tensor.name])
    assert isinstance(weight, Fp8Weight)
    assert weight.name == "experts.up_proj"
    out = weight.decode({"codes": codes, "scale": scale}, torch.full((3, *shape), float("nan")))
    for expert in range(3):
        expected = codes[expert].float() * spread_blocks(scale[expert], block, shape)
        assert torch.equal(out[expert], expected)
