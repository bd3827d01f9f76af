"""Adapter folders with one thing changed: refused in one line that names the file and the setting.

Independent check of patterns: what PEFT's own get_pattern_key finds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from strata.engine.adapters import module_patterns
from strata.engine.adapters.adapter_config import check_for_peft
from strata.engine.adapters.adapter_file import read_adapter
from strata.engine.adapters.module_patterns import ModulePatterns

from .changed_files import DEEP_LIST, refusal

NEVER_ENDING = "(a|a)+[0-9]"
MODULE = "model.layers.0.self_attn." + "a" * 40 + "x"

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "alpha_bigint": ({"lora_alpha": 10**400}, "lora_alpha"),
    "alpha_inf": ({"lora_alpha": math.inf}, "lora_alpha"),
    "alpha_str": ({"lora_alpha": "8"}, "lora_alpha"),
    "rank_bigint": ({"r": 10**400}, "r: "),
    "pattern_redos": ({"rank_pattern": {"(a|aa)+[0-9]": 4}}, "rank_pattern"),
    "pattern_redos2": ({"alpha_pattern": {NEVER_ENDING: 4}}, "alpha_pattern"),
    "pattern_flags": ({"rank_pattern": {"(?i)q_proj": 4}}, "rank_pattern"),
    "pattern_overflow": ({"rank_pattern": {"a{99999999999999999999}": 4}}, "rank_pattern"),
    "pattern_deepre": ({"rank_pattern": {"(" * 400 + ")" * 400: 4}}, "rank_pattern"),
    "pattern_long": ({"rank_pattern": {"a" * 5_000: 4}}, "rank_pattern"),
    "pattern_unmatched": ({"rank_pattern": {"q_(proj": 4}}, "rank_pattern"),
    "mts_int": ({"modules_to_save": 5}, "modules_to_save"),
    "mts_ints": ({"modules_to_save": [5]}, "modules_to_save.0"),
    "mts_nested": ({"modules_to_save": [["score"]]}, "modules_to_save.0"),
    "targets_int": ({"target_modules": 5}, "target_modules"),
    "init_list": ({"init_lora_weights": [1]}, "init_lora_weights"),
    "unknown_list": ({"setting_of_tomorrow": ["x" * 1_000]}, "setting_of_tomorrow"),
}


def write_adapter(folder: Path, settings: dict[str, Any], module: str = MODULE) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    root = f"base_model.model.{module}"
    tensors = {f"{root}.lora_A.weight": torch.ones(4, 8), f"{root}.lora_B.weight": torch.ones(8, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def read(folder: Path) -> None:
    read_adapter(folder, hidden_size=8, num_layers=2)


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_of(case: str, tmp_path: Path) -> None:
    settings, told = SETTINGS[case]
    folder = write_adapter(tmp_path / "adapter", settings)
    refusal(lambda: read(folder), "adapter_config.json", told)


@pytest.mark.parametrize("content", [DEEP_LIST, "null", "[]", "", '{"r": ' + "9" * 5_000 + "}"])
def test_a_config_that_is_none(content: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", {})
    (folder / "adapter_config.json").write_text(content)
    refusal(lambda: read(folder), "adapter_config.json")


@pytest.mark.parametrize(
    "layer", ["9" * 5_000, "\u0661", "-1", "1e3"], ids=["5000digits", "unicode", "neg", "e"]
)
def test_a_layer_number_of(layer: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", {}, f"model.layers.{layer}.self_attn.q_proj")
    refusal(lambda: read(folder), "adapter_model.safetensors", "is not supported")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"target_modules": "(a+)+b"}, "target_modules"),
        ({"exclude_modules": NEVER_ENDING}, "exclude_modules"),
        ({"rank_pattern": {"(a+)+b": 4}}, "rank_pattern"),
        ({"megatron_config": {"a": 1}, "megatron_core": "mine"}, "megatron_config"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}}, "peft_type"),
        ({"modules_to_save": 5}, "modules_to_save"),
    ],
    ids=str,
)
def test_what_peft_would_trust(
    settings: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_patterns, "MATCHING_WITH_RE_S", 1.0)
    folder = write_adapter(tmp_path / "adapter", settings)
    refusal(lambda: check_for_peft(folder, [MODULE]), "adapter_config.json", told)


def test_pickled_weights_do_not_reach_peft(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", {})
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refusal(lambda: check_for_peft(folder, [MODULE]), "no adapter_model.safetensors")


@pytest.mark.parametrize(
    "key", ["q_proj", r".*\.1\.self_attn\..*", "proj", r"layers\.\d+\.mlp\.up_proj", "q|k"]
)
def test_patterns_match_as_peft_does(key: str) -> None:
    for layer in range(2):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "x.q"):
            module = f"model.layers.{layer}.{name}"
            found = ModulePatterns({key: 1}).value_of(module, 0)
            # PEFT gives the name itself back where no pattern matches.
            assert found == (get_pattern_key([key], module) == key)
