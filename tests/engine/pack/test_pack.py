"""What `strata pack` leaves: values against formats' definitions and their own libraries, and the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from strata.engine.pack.config import PackConfig
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.checksums import digest_of, read_checksums
from strata.engine.weights.tensor_reader import TensorReader
from strata.kernels.dequant.four_bit import dequantize_absmax
from strata.kernels.dequant.reference import reference_4bit, reference_channels

from ...families import SHAPE, build_tokenizer, randomize_weights

PLAIN = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STATE = ".quant_state.bitsandbytes__nf4"
Tensors = dict[str, torch.Tensor]
Pack = Callable[..., Path]


@pytest.fixture
def pack(tmp_path) -> Pack:
    """`pack(model, format, **settings)` -> the folder it leaves."""

    def run(model: Path, kind: str, **settings) -> Path:
        out = tmp_path / f"packed{len(list(tmp_path.iterdir()))}"
        pack_checkpoint(PackConfig(model=model, format=kind, out=out, **settings))
        assert not out.with_name(out.name + ".partial").exists()
        return out

    return run


@pytest.fixture
def wide(tmp_path) -> Path:
    """A Qwen 2, which has biases, in bfloat16 and several shards; k and v are too narrow to be packed."""
    config = hf.Qwen2Config(
        **SHAPE | {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 16}
    )
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize_weights(model)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "wide", max_shard_size="64KB")
    build_tokenizer().save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def read_all(folder: Path) -> Tensors:
    """Every tensor of a checkpoint folder."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def decode_all(folder: Path) -> Tensors:
    """Every weight of a checkpoint by its stored name, decoded by strata into float32."""
    weights = [weight for source in open_checkpoint(folder).weights.values() for weight, _ in source.parts]
    with closing(TensorReader()) as reader:
        return {
            weight.name: weight.decode(
                {role: reader.read(part) for role, part in weight.parts.items()}, torch.empty(weight.shape)
            )
            for weight in weights
        }


def decode_by_reference(folder: Path) -> Tensors:
    """The same from the stored tensors, with the kernels' slow references."""
    stored = read_all(folder)
    decoded = {}
    for name, tensor in stored.items():
        if name + STATE in stored:
            decoded[name] = _reference_nf4(name, stored)
        elif name + "_scale" in stored:
            decoded[name] = reference_channels(tensor, stored[name + "_scale"][:, 0]).float()
        elif ".weight." not in name and not name.endswith("_scale"):
            decoded[name] = tensor.float()
    return decoded


def _reference_nf4(name: str, stored: Tensors) -> torch.Tensor:
    state = json.loads(bytes(stored[name + STATE].tolist()))
    absmax = stored[name + ".absmax"]
    if "nested_offset" in state:
        absmax = dequantize_absmax(
            absmax,
            stored[name + ".nested_quant_map"],
            stored[name + ".nested_absmax"],
            state["nested_blocksize"],
            state["nested_offset"],
        )
    quant_map, shape = stored[name + ".quant_map"], tuple(state["shape"])
    return reference_4bit(stored[name], absmax, quant_map, state["blocksize"], shape).float()


def same_bytes(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal dtype, shape and bits; NaN equals itself."""
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
    )


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


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama-gqa", "int8"),
        ("llama-gqa", "nf4"),
        ("qwen2", "nf4"),
        ("phi3", "int8"),
        ("mixtral", "int8"),
        ("mixtral", "nf4"),
    ],
)
def test_scores_are_those_of_the_decoded_weights(family, kind, checkpoint, pack, score):
    packed = pack(checkpoint(family), kind)
    decoded = decode_by_reference(packed)
    assert decoded.keys() == read_all(checkpoint(family)).keys()
    found = decode_all(packed)
    assert [name for name in decoded if not torch.equal(found[name], decoded[name])] == []
    plain = pack(checkpoint(family), "fp32")
    save_file(decoded, plain / "model.safetensors", metadata={"format": "pt"})
    ours, expected = score(model=packed), score(model=plain)
    for row, other in zip(ours.scores, expected.scores, strict=True):
        assert row.scores.tolist() == other.scores.tolist()
    original = score(model=checkpoint(family))
    assert any(
        (row.scores != other.scores).any() for row, other in zip(ours.scores, original.scores, strict=True)
    )


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


@pytest.mark.parametrize("double_quant", [True, False])
def test_transformers_loads_nf4(double_quant, wide, pack):
    functional = pytest.importorskip("bitsandbytes.functional")
    out = pack(wide, "nf4", double_quant=double_quant)
    model, info = hf.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    decoded = decode_by_reference(out)
    for module in ("self_attn.q_proj", "mlp.down_proj"):
        weight = model.model.layers[2].get_submodule(module).weight
        theirs = functional.dequantize_4bit(weight.data, weight.quant_state)
        # They decode into the source's bfloat16.
        expected = decoded[f"model.layers.2.{module}.weight"]
        torch.testing.assert_close(theirs.float(), expected, rtol=2**-8, atol=1e-6)


def test_transformers_loads_int8(wide, pack):
    pytest.importorskip("compressed_tensors")
    out = pack(wide, "int8")
    model, info = hf.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    ids = torch.arange(3, 40)[None]
    plain = hf.AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32)
    plain.load_state_dict(decode_by_reference(out))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=0, atol=1e-4)


def test_shards_are_bounded_and_indexed(wide, pack):
    out = pack(wide, "int8", shard_gib=50_000 / 2**30)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    for file in files:
        tensors = load_file(file)
        assert {name for name, shard in index["weight_map"].items() if shard == file.name} == tensors.keys()
        assert len({name.removesuffix("_scale") for name in tensors}) == 1 or file.stat().st_size < 60_000
    num_bytes = sum(tensor.numel() * tensor.itemsize for tensor in read_all(out).values())
    assert index["metadata"]["total_size"] == num_bytes


def test_checksums_are_those_of_the_bytes(wide, pack):
    out = pack(wide, "nf4", verify=True)
    found = read_checksums(out).tensors["model.safetensors"]
    stored = load_file(out / "model.safetensors")
    assert found == {
        name: digest_of(tensor.reshape(-1).view(torch.uint8).numpy().data) for name, tensor in stored.items()
    }


def test_small_files_come_along_and_weights_of_other_kinds_do_not(wide, pack):
    for name in ("pytorch_model.bin", "model.gguf", "quantize_config.json", ".hidden", "notes.md"):
        (wide / name).write_text("x")
    out = pack(wide, "bf16")
    expected = {file.name for file in wide.iterdir() if file.suffix in (".json", ".md", ".jinja")}
    expected -= {"quantize_config.json", "model.safetensors.index.json"}
    assert {file.name for file in out.iterdir()} == expected | {"model.safetensors", "strata_checksums.json"}
    assert (out / "tokenizer.json").read_bytes() == (wide / "tokenizer.json").read_bytes()


def change(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[7] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("quantised", [False, True])
def test_a_weight_that_overflows_float16_is_named(quantised, checkpoint, pack, tmp_path):
    source, name = pack(checkpoint("llama-gqa"), "fp32"), "model.layers.1.mlp.up_proj.weight"
    change(source, name, 70_000.0)
    source = pack(source, "int8") if quantised else source
    with pytest.raises(
        InputError, match=rf"model.safetensors: tensor {name} .*65504.* float16; expected .*bf16"
    ):
        pack(source, "fp16")
    assert list(tmp_path.glob("*.partial")) == []
    assert read_all(pack(source, "bf16"))[name].isfinite().all()


def test_infinities_of_the_source_are_no_overflow(checkpoint, pack):
    source = pack(checkpoint("llama-gqa"), "fp32")
    change(source, "model.norm.weight", float("inf"))
    assert read_all(pack(source, "fp16"))["model.norm.weight"].isinf().sum() == 1


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_cannot_be_quantised_is_named(kind, value, checkpoint, pack):
    source, name = pack(checkpoint("llama-gqa"), "fp32"), "model.layers.2.self_attn.o_proj.weight"
    change(source, name, value)
    with pytest.raises(InputError, match=rf"model.safetensors: tensor {name} holds NaN or infinity"):
        pack(source, kind)


@pytest.mark.parametrize("shard_gib", [0.0, -1.0, float("nan"), float("inf")])
def test_a_shard_size_that_means_nothing_is_refused(shard_gib, checkpoint, pack):
    with pytest.raises(InputError, match=r"--shard-gib: .* expected a number above 0"):
        pack(checkpoint("llama-gqa"), "bf16", shard_gib=shard_gib)
