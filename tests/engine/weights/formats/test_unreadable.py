"""What cannot be read is refused before any work, in one line that names the file, tensor or setting."""

import json

import pytest
import torch

from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.scripts.cli import main

from .layouts import LAYOUTS, compressed_settings

MODULE = "model.layers.1.mlp.up_proj"
PARTS = {
    "bitsandbytes-fp4-nested": (
        ".weight",
        ".weight.absmax",
        ".weight.quant_map",
        ".weight.nested_absmax",
        ".weight.nested_quant_map",
    ),
    "bitsandbytes-8bit": (".weight", ".SCB"),
    "gptq": (".qweight", ".qzeros", ".scales"),
    "awq": (".qweight", ".qzeros", ".scales"),
    "packed": (".weight_packed", ".weight_scale", ".weight_shape"),
    "int8-channel": (".weight", ".weight_scale"),
    "float-channel": (".weight", ".weight_scale"),
    "fp8-block": (".weight", ".weight_scale_inv"),
    "fbgemm-fp8": (".weight", ".weight_scale"),
}
EVERY_PART = [(layout, suffix) for layout, suffixes in PARTS.items() for suffix in suffixes]
OPTIONAL_PARTS = [
    ("packed-asymmetric", ".weight_zero_point"),
    ("packed-act-order", ".weight_g_idx"),
    ("gptq", ".g_idx"),
]


def message(path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize(("layout", "suffix"), EVERY_PART)
def test_a_missing_part(layout, suffix, damaged):
    text = message(damaged(layout, {MODULE + suffix: None}))
    assert f"needs {MODULE}{suffix}, which the checkpoint does not hold" in text


@pytest.mark.parametrize(("layout", "suffix"), EVERY_PART + OPTIONAL_PARTS)
def test_a_part_of_another_shape(layout, suffix, damaged, quantized):
    stored = torch_tensors(quantized(layout).path)[MODULE + suffix]
    text = message(damaged(layout, {MODULE + suffix: torch.cat([stored, stored])}))
    assert MODULE in text
    assert "expect" in text


@pytest.mark.parametrize(("layout", "suffix"), EVERY_PART)
def test_a_part_of_another_dtype(layout, suffix, damaged, quantized):
    stored = torch_tensors(quantized(layout).path)[MODULE + suffix]
    text = message(damaged(layout, {MODULE + suffix: torch.ones(stored.shape, dtype=torch.int16)}))
    assert f"{MODULE}{suffix}" in text
    assert "expect" in text


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_names_that_were_swapped(layout, damaged, quantized):
    stored = torch_tensors(quantized(layout).path)
    codes, zeros = f"{MODULE}.qweight", f"{MODULE}.qzeros"
    text = message(damaged(layout, {codes: stored[zeros], zeros: stored[codes]}))
    assert f"tensor {MODULE}." in text
    assert "expected" in text


def torch_tensors(path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


PACKED = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
SETTINGS = [
    ("gptq", {"bits": 3}, "bits is 3; expected 2, 4 or 8"),
    ("gptq", {"bits": None}, "bits is None"),
    ("gptq", {"group_size": 0}, "group_size is 0"),
    ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; expected gptq or gptq_v2"),
    ("gptq", {"is_marlin_format": True}, "checkpoint_format is 'marlin'"),
    ("gptq", {"dynamic": {"+:up": {"bits": 3}}}, "bits is 3"),
    ("gptq", {"bits": 8}, "qzeros has shape"),
    ("gptq", {"group_size": 8}, "has shape"),
    ("awq", {"version": "gemv"}, "version is 'gemv'; expected 'gemm'"),
    ("awq", {"zero_point": False}, "zero_point is False; expected true"),
    ("awq", {"bits": 8}, "bits is 8; expected 4"),
    ("awq", {"group_size": "x"}, "group_size: input should be a valid integer, found 'x'"),
    ("awq", {"group_size": 24}, "expected a multiple of quantization_config's group_size 24"),
    ("awq", {"group_size": 32}, "qzeros has shape"),
    ("bitsandbytes-8bit", {"load_in_8bit": False}, "expects load_in_4bit or load_in_8bit to be true"),
    ("packed", {"format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'; expected one of"),
    ("packed", {"format": "marlin-24"}, "format is 'marlin-24'"),
    (
        "packed",
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity_config's format is 'sparse-24-bitmask'",
    ),
    ("packed", {"transform_config": {"config_groups": {"u": {}}}}, "transform_config holds transforms"),
    ("packed", {"config_groups": {}}, "no config_groups with weights"),
    ("packed", {"config_groups": {"g": {"weights": PACKED, "format": "nvfp4-pack-quantized"}}}, "nvfp4"),
    (
        "packed",
        {"config_groups": {"g": {"weights": PACKED | {"num_bits": 3}}}},
        "type int in 3 bits; expected",
    ),
    ("packed", {"config_groups": {"g": {"weights": PACKED | {"type": "float"}}}}, "type float in 4 bits"),
    ("packed", {"config_groups": {"g": {"weights": PACKED | {"strategy": "token"}}}}, "strategy 'token'"),
    ("packed", {"config_groups": {"g": {"weights": PACKED | {"group_size": 8}}}}, "weight_scale has shape"),
    ("packed", {"config_groups": {"g": {"weights": PACKED | {"num_bits": 8}}}}, "weight_packed has shape"),
    ("fp8-block", {"weight_block_size": 128}, "weight_block_size: input should be a valid list, found 128"),
    ("fp8-block", {"weight_block_size": [16, 16]}, "weight_scale_inv has shape"),
    ("gptq", {"quant_method": "quip"}, "quant_method 'quip'; expected one of awq"),
]


@pytest.mark.parametrize(("layout", "settings", "expected"), SETTINGS, ids=[case[2] for case in SETTINGS])
def test_a_setting_that_is_not_readable(layout, settings, expected, damaged):
    text = message(damaged(layout, **settings))
    assert expected in text
    assert "has shape" in text or "quantization_config" in text


def test_bytes_not_in_rows(damaged):
    name = MODULE + ".weight_format"
    text = message(damaged("bitsandbytes-8bit", {name: torch.tensor(2, dtype=torch.uint8)}))
    assert f"tensor {name} says col_turing; expected row (0)" in text


@pytest.mark.parametrize(
    "state",
    [
        b"no json",
        b"[]",
        b'{"shape": [64, 32]}',
        b'{"shape": [64, "x"], "blocksize": 64}',
        b'{"shape": [64, 32], "blocksize": 0}',
        b'{"shape": [64, 32], "blocksize": 64, "nested_blocksize": 8}',
    ],
    ids=str,
)
def test_a_quantisation_state_that_says_nothing(state, damaged):
    name = MODULE + ".weight.quant_state.bitsandbytes__nf4"
    text = message(damaged("bitsandbytes-nf4", {name: torch.tensor(list(state), dtype=torch.uint8)}))
    assert f"tensor {name} is no quantisation state" in text


def test_int8_weights_with_zero_points(damaged):
    name = MODULE + ".weight_zero_point"
    text = message(damaged("int8-channel", {name: torch.zeros(64, 1, dtype=torch.int8)}))
    assert f"tensor {name}: int8 weights with zero points are not readable; expected symmetric" in text


def test_another_kind_of_float8(damaged):
    codes = torch.ones(64, 32).to(torch.float8_e5m2)
    assert "dtype F8_E5M2; expected F8_E4M3" in message(damaged("fp8-block", {MODULE + ".weight": codes}))


def test_gptq_columns_that_fill_no_word(tmp_path, damaged):
    changed = {
        f"{MODULE}.qweight": torch.zeros(4, 60, dtype=torch.int32),
        f"{MODULE}.qzeros": torch.zeros(2, 7, dtype=torch.int32),
        f"{MODULE}.scales": torch.zeros(2, 60, dtype=torch.float16),
    }
    assert "60 columns; expected a multiple of 8" in message(damaged("gptq", changed))


@pytest.mark.parametrize("layout", ["gptq", "packed"])
def test_a_lm_head_that_is_quantised(layout, damaged, quantized):
    stored = torch_tensors(quantized(layout).path)
    of_module = {name: part for name, part in stored.items() if name.startswith(MODULE + ".")}
    moved = {name.replace(MODULE, "lm_head"): part for name, part in of_module.items()}
    text = message(damaged(layout, moved | {"lm_head.weight": None}))
    assert "lm_head.weight is stored as" in text
    assert "expects embedding, final norm and heads as plain" in text


@pytest.mark.parametrize("layout", ["gptq", "packed-act-order"])
def test_an_act_order_that_names_a_group_without_scales(layout, damaged, questions, tmp_path, capsys):
    suffix = ".g_idx" if layout == "gptq" else ".weight_g_idx"
    path = damaged(layout, {MODULE + suffix: torch.full([32], 7, dtype=torch.int32)})
    flags = [
        "--model",
        str(path),
        "--questions",
        str(questions),
        "--out",
        str(tmp_path / "out"),
        "--devices",
        "cpu",
    ]
    assert main(["score", *flags]) == 2
    assert f"{path / 'model.safetensors'}: {MODULE}.weight cannot be decoded" in capsys.readouterr().err


def test_exit_status_of_a_missing_scale(damaged, questions, tmp_path, capsys):
    path = damaged("awq", {MODULE + ".scales": None})
    flags = ["--model", str(path), "--questions", str(questions), "--out", str(tmp_path / "out")]
    assert main(["score", *flags]) == 2
    assert (
        f"{path / 'model.safetensors'}: tensor {MODULE}.qweight needs {MODULE}.scales"
        in capsys.readouterr().err
    )


def test_a_truncated_file(damaged):
    path = damaged("gptq")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in message(path)


def test_quantised_weights_without_a_quantization_config(damaged, questions, tmp_path, capsys):
    path = damaged("gptq")
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    flags = ["--model", str(path), "--questions", str(questions), "--out", str(tmp_path / "out")]
    assert main(["score", *flags]) == 2
    assert str(path) in capsys.readouterr().err


def test_the_unreadable_settings_are_readable_before_they_are_changed():
    # Guards the table above: each case must fail because of its own change.
    assert compressed_settings(PACKED, "pack-quantized")["config_groups"]["group_0"]["weights"] == PACKED
    weights = LAYOUTS["packed"].settings["config_groups"]["group_0"]["weights"]
    assert {key: weights[key] for key in PACKED} == PACKED
