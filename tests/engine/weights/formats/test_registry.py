"""Which format a config names, whatever its age."""

import pytest

from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.formats.registry import ignored_settings, quant_method

from .layouts import LAYOUTS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_part_of_a_weight_is_said_to_be_unused(layout, quantized):
    """A quantisation state is read as the checkpoint is opened; scales of activations are indeed not used."""
    unused = open_checkpoint(quantized(layout).path).unused
    assert [name for name in unused if not name.endswith(".input_scale")] == []


def test_early_configs_of_bitsandbytes_name_no_method(damaged, quantized):
    for layout, name in (("bitsandbytes-nf4", "nf4"), ("bitsandbytes-8bit", "int8")):
        assert open_checkpoint(damaged(layout, quant_method=None)).format_name == name


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes"),
        ({"quant_method": "GPTQ"}, "gptq"),
        ({"bits": 4}, ""),
    ],
)
def test_quant_method(settings, method):
    assert quant_method(settings) == method


def test_both_spellings_of_compressed_tensors(damaged):
    for number, spelling in enumerate(("compressed-tensors", "compressed_tensors")):
        layout = ("packed", "int8-channel")[number]
        name = ("pack-quantized", "int8")[number]
        assert open_checkpoint(damaged(layout, quant_method=spelling)).format_name == name


def test_transformers_private_flags_of_bitsandbytes(damaged):
    path = damaged("bitsandbytes-nf4", load_in_4bit=False, _load_in_4bit=True)
    assert open_checkpoint(path).format_name == "nf4"


def test_what_is_ignored_is_said():
    group = {"targets": ["Linear"], "weights": {}, "input_activations": {"num_bits": 8}}
    asked = {"config_groups": {"group_0": group}, "kv_cache_scheme": {"num_bits": 8}}
    lines = ignored_settings(asked)
    assert [line.split()[1] for line in lines] == ["input_activations", "kv_cache_scheme"]
    assert ignored_settings(LAYOUTS["fp8-block"].settings)[0].split()[1] == "activation_scheme"
    assert ignored_settings(LAYOUTS["bitsandbytes-8bit"].settings)[0].split()[1] == "load_in_8bit"
    for layout in ("packed", "gptq", "awq", "bitsandbytes-nf4"):
        assert ignored_settings(LAYOUTS[layout].settings) == []
