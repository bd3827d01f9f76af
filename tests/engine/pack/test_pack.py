"""What `strata pack` leaves: values against formats' definitions and their own libraries."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from .packed_weights import STATE, config_of, decode_by_reference, read_all, same_bytes

PLAIN = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("family", ["llama-gqa", "qwen2", "mixtral"])
def test_plain_formats_hold_the_sources_weights_converted(family, kind, checkpoint, pack):
    source, packed = read_all(checkpoint(family)), read_all(pack(checkpoint(family), kind))
    assert packed.keys() == source.keys()
    wrong = [name for name in source if not same_bytes(packed[name], source[name].to(PLAIN[kind]))]
    assert wrong == []


def test_a_plain_format_says_its_dtype_and_no_quantization(checkpoint, pack):
    config = config_of(pack(pack(checkpoint("llama-gqa"), "nf4"), "bf16"))
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_only_linear_modules_of_layers_are_packed(kind, wide, pack):
    source, out = read_all(wide), pack(wide, kind)
    packed = read_all(out)
    quantized = {name for name in source if packed[name].dtype != source[name].dtype}
    wide_enough = [module for module in LINEARS if module not in ("k_proj", "v_proj")]
    assert {name.split(".")[-2] for name in quantized} == set(wide_enough)
    assert len(quantized) == len(wide_enough) * 3
    assert [name for name in source.keys() - quantized if not same_bytes(packed[name], source[name])] == []
    settings = config_of(out)["quantization_config"]
    ignored = settings["llm_int8_skip_modules"] if kind == "nf4" else settings["ignore"]
    assert [module for module in (*LINEARS, "lm_head") if any(module in name for name in ignored)] == [
        "k_proj",
        "v_proj",
        "lm_head",
    ]


def test_int8_is_the_nearest_code_of_a_scale_a_channel(checkpoint, pack):
    source, packed = read_all(checkpoint("llama-gqa")), read_all(pack(checkpoint("llama-gqa"), "int8"))
    scales = [name for name in packed if name.endswith("_scale")]
    assert len(scales) == 3 * len(LINEARS)
    for scale_name in scales:
        name = scale_name.removesuffix("_scale")
        weight, codes, scale = source[name].double(), packed[name], packed[scale_name]
        assert (codes.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (len(weight), 1))
        torch.testing.assert_close(scale.double(), weight.abs().amax(1, keepdim=True) / 127)
        assert ((codes * scale.double() - weight).abs() <= scale.double() * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_holds_what_bitsandbytes_itself_makes(double_quant, wide, pack):
    functional = pytest.importorskip("bitsandbytes.functional")
    source, packed = read_all(wide), read_all(pack(wide, "nf4", double_quant=double_quant))
    names = [name.removesuffix(STATE) for name in packed if name.endswith(STATE)]
    assert len(names) == 15
    for name in names:
        codes, state = functional.quantize_4bit(
            source[name], blocksize=64, compress_statistics=double_quant, quant_type="nf4"
        )
        expected = state.as_dict(packed=True)
        found = {key: packed[f"{name}.{key}"] for key in expected}
        assert torch.equal(packed[name], codes)
        assert unpack(found.pop(STATE[1:])) == unpack(expected.pop(STATE[1:]))
        for key, tensor in expected.items():
            assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        if double_quant:
            # Of two codes that are equally near, its CPU kernel may take the other.
            steps = found.pop("absmax").int() - expected.pop("absmax").int()
            assert steps.abs().max() <= 1
            assert (steps == 0).float().mean() > 0.9
        assert [key for key, tensor in expected.items() if not torch.equal(found[key], tensor)] == []


def unpack(state: torch.Tensor) -> dict:
    """The JSON in a uint8 tensor; an offset of few ulps may come from another order of summation."""
    content = json.loads(bytes(state.tolist()))
    if "nested_offset" in content:
        content["nested_offset"] = pytest.approx(content["nested_offset"], rel=1e-6)
    return content


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_source_is_decoded_first(kind, wide, pack):
    quantised = pack(wide, kind)
    expected = decode_by_reference(quantised)
    found = read_all(pack(quantised, "fp32"))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not same_bytes(found[name], expected[name])] == []


def test_int8_of_nf4_is_int8_of_its_decoded_weights(wide, pack):
    quantised = pack(wide, "nf4")
    packed, expected = read_all(pack(quantised, "int8")), read_all(pack(pack(quantised, "fp32"), "int8"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(packed[name], expected[name])
    assert torch.equal(packed[name + "_scale"], expected[name + "_scale"])
    assert packed["model.norm.weight"].dtype == torch.bfloat16


def test_what_belongs_to_the_sources_format_is_left_behind(checkpoint, pack):
    quantised = pack(checkpoint("llama-gqa"), "int8")
    tensors = load_file(quantised / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.input_scale"] = torch.ones(1)
    save_file(tensors, quantised / "model.safetensors", metadata={"format": "pt"})
    assert read_all(pack(quantised, "bf16")).keys() == read_all(checkpoint("llama-gqa")).keys()
