"""config.json with one value changed: refused in one line that names the file and the key.

Independent check of the good ones: the parity tests, which open every family (tests/engine/test_parity.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strata.engine.encoders.encoder import is_encoder, measure_encoder, read_encoder_config
from strata.engine.model.open_model import Computing, open_model
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader

from ..engine.encoders.tiny_encoder import build_encoder
from .changed_files import DEEP_OBJECT, change_json, copy_folder, refusal

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "layers_1e9": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "layers_1e5": ({"num_hidden_layers": 10**5}, "num_hidden_layers"),
    "layers_more_than_stored": ({"num_hidden_layers": 900}, "num_hidden_layers"),
    "layers_0": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "layers_neg": ({"num_hidden_layers": -1}, "num_hidden_layers"),
    "layers_str": ({"num_hidden_layers": "3"}, "num_hidden_layers"),
    "layers_float": ({"num_hidden_layers": 5.5}, "num_hidden_layers"),
    "layers_true": ({"num_hidden_layers": True}, "num_hidden_layers"),
    "layers_null": ({"num_hidden_layers": None}, "num_hidden_layers"),
    "hidden_str": ({"hidden_size": "64"}, "hidden_size"),
    "hidden_huge": ({"hidden_size": 10**17}, "hidden_size"),
    "heads_7": ({"num_attention_heads": 7, "num_key_value_heads": 7}, "attention heads (7)"),
    "heads_0": ({"num_attention_heads": 0}, "num_attention_heads"),
    "heads_neg": ({"num_attention_heads": -8}, "num_attention_heads"),
    "kv_0": ({"num_key_value_heads": 0}, "num_key_value_heads"),
    "kv_3": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "headdim_0": ({"head_dim": 0}, "head_dim"),
    "headdim_7": ({"head_dim": 7}, "head_dim"),
    "headdim_str": ({"head_dim": "8"}, "head_dim"),
    "inter_neg": ({"intermediate_size": -1}, "intermediate_size"),
    "inter_huge": ({"intermediate_size": 10**15}, "intermediate_size"),
    "vocab_huge": ({"vocab_size": 10**15}, "vocab_size"),
    "labels_huge": ({"num_labels": 10**12}, "num_labels"),
    "rope_theta_inf": ({"rope_theta": float("inf")}, "rope_theta"),
    "rope_theta_str": ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_theta"),
    "rope_theta_neg": ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta"),
    "rope_unknown": ({"rope_parameters": {"rope_type": "zzz", "factor": 2.0}}, "rope_type"),
    "rope_scaling_unknown": ({"rope_scaling": {"type": "wonky", "factor": 2.0}}, "rope_scaling"),
    "rope_list": ({"rope_parameters": [1, 2]}, "rope_parameters"),
    "rope_by_layers": ({"rope_parameters": {"full_attention": {"rope_type": "zzz"}}}, "full_attention"),
    "rope_factor_lacks": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
    "eps_str": ({"rms_norm_eps": "x"}, "rms_norm_eps"),
    "eps_nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "act_unknown": ({"hidden_act": "evil"}, "hidden_act"),
    "act_list": ({"hidden_act": ["silu"]}, "hidden_act"),
    "maxpos_0": ({"max_position_embeddings": 0}, "max_position_embeddings"),
    "maxpos_neg": ({"max_position_embeddings": -1}, "max_position_embeddings"),
    "maxpos_str": ({"max_position_embeddings": "512"}, "max_position_embeddings"),
    "type_list": ({"model_type": ["llama"]}, "model_type"),
    "type_unknown": ({"model_type": "abacus"}, "abacus"),
    "dtype_evil": ({"dtype": "evil"}, "dtype"),
    "dtype_module": ({"dtype": "nn"}, "dtype"),
    "dtype_int": ({"dtype": 5}, "dtype"),
    "quant_list": ({"quantization_config": [1]}, "quantization_config"),
    "quant_str": ({"quantization_config": "x"}, "quantization_config"),
    "quant_ct_weird": (
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": 5}},
        "config_groups",
    ),
    "quant_bits_str": ({"quantization_config": {"quant_method": "gptq", "bits": "4"}}, "bits"),
    "layer_types": ({"layer_types": ["evil"] * 3}, "layer_types"),
    "layer_types_short": ({"layer_types": ["full_attention"]}, "layer_types"),
    "tie_str": ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    "architectures_int": ({"architectures": 5}, "architectures"),
    "other_weights": ({"transformers_weights": "../other.safetensors"}, "transformers_weights"),
    "text_config": ({"text_config": {"num_hidden_layers": 10**9}}, "text_config"),
    "text_config_list": ({"text_config": [1]}, "text_config"),
    "auto_map": ({"model_type": "mine", "auto_map": {"AutoConfig": "configuration_x.X"}}, "auto_map"),
}
CONTENTS = {
    "null": "null",
    "deep": DEEP_OBJECT,
    "deep_key": '{"model_type": "llama", "x": ' + "[" * 100 + "]" * 100 + "}",
    "digits": '{"model_type": "llama", "hidden_size": ' + "9" * 5_000 + "}",
    "empty": "",
    "utf16": '{"model_type": "llama"}'.encode("utf-16-le").decode("latin-1"),
}


def open_decoder(folder: Path) -> None:
    assert not is_encoder(folder)
    open_model(open_checkpoint(folder), (), Computing(devices=("cpu",), dtype=torch.float32), TensorReader())


@pytest.fixture
def decoder(checkpoint, tmp_path) -> Path:
    return copy_folder(checkpoint("llama-gqa"), tmp_path / "model")


@pytest.mark.parametrize("case", CHANGES)
def test_a_decoder_of(case: str, decoder: Path) -> None:
    changes, key = CHANGES[case]
    change_json(decoder / "config.json", changes)
    refusal(lambda: open_decoder(decoder), "config.json", key)


@pytest.mark.parametrize("case", CONTENTS)
def test_a_config_that_is(case: str, decoder: Path) -> None:
    (decoder / "config.json").write_bytes(CONTENTS[case].encode("latin-1"))
    refusal(lambda: open_decoder(decoder), "config.json")


ENCODER_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "layers_1e9": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "heads_0": ({"num_attention_heads": 0}, "num_attention_heads"),
    "heads_7": ({"num_attention_heads": 7, "num_key_value_heads": 7}, "attention heads (7)"),
    "hidden_str": ({"hidden_size": "64"}, "hidden_size"),
    "act_unknown": ({"hidden_act": "evil"}, "hidden_act"),
    "types_huge": ({"type_vocab_size": 10**12}, "type_vocab_size"),
    "pad_beyond": ({"pad_token_id": 10**9}, "config.json"),
    "dtype_evil": ({"torch_dtype": "evil"}, "dtype"),
}


@pytest.mark.parametrize("case", ENCODER_CHANGES)
def test_an_encoder_of(case: str, tmp_path: Path) -> None:
    changes, key = ENCODER_CHANGES[case]
    folder = build_encoder("bert", tmp_path / "model")
    change_json(folder / "config.json", changes)
    refusal(lambda: measure_encoder(read_encoder_config(folder)), "config.json", key)


def test_values_that_real_configs_hold_are_read(decoder: Path) -> None:
    change_json(
        decoder / "config.json",
        {
            "rope_scaling": None,
            "pad_token_id": -1,
            "eos_token_id": [2, 3],
            "head_dim": None,
            "sliding_window": None,
            "torch_dtype": "float32",
            "auto_map": {"AutoConfig": "configuration_x.X"},
            "quantization_config": None,
            "layer_types": None,
            "key_of_tomorrow": {"a": [1]},
        },
    )
    open_decoder(decoder)
