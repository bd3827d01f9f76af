"""Reading adapters: what is accepted, and every refusal, by name and with the file it is in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from strata.engine.adapters.adapter_file import check_shapes, read_adapter
from strata.engine.adapters.lora import Adapter
from strata.engine.types import InputError

HIDDEN_SIZE = 32
ROOT = "base_model.model"
QUERY = f"{ROOT}.model.layers.0.self_attn.q_proj"


def read(folder: Path) -> Adapter:
    return read_adapter(folder, hidden_size=HIDDEN_SIZE, num_layers=2)


def write_adapter(
    folder: Path, settings: dict[str, Any] | None = None, tensors: dict[str, Tensor | None] | None = None
) -> Path:
    """A valid adapter of rank 4, with settings replaced and tensors replaced or (None) left out."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | (settings or {})
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    kept: dict[str, Tensor | None] = {
        f"{QUERY}.lora_A.weight": torch.ones(4, HIDDEN_SIZE),
        f"{QUERY}.lora_B.weight": torch.ones(HIDDEN_SIZE, 4),
    }
    kept |= tensors or {}
    weights = {name: tensor for name, tensor in kept.items() if tensor is not None}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": "all"},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "mica"},
        {"modules_to_save": ["classifier", "score"]},
        {"target_parameters": [], "use_qalora": False, "setting_of_tomorrow": None},
        {"rank_pattern": None, "alpha_pattern": None},
        {"megatron_core": "megatron.core", "loftq_config": {}},
    ],
    ids=str,
)
def test_harmless_settings_are_accepted(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert read(write_adapter(tmp_path / "a", settings)).layers[0]["self_attn.q_proj"].scaling == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"peft_type": "ADALORA"}, "'ADALORA'"),
        ({"peft_type": "PROMPT_TUNING"}, "'PROMPT_TUNING'"),
        ({"peft_type": None}, "peft_type: input should be a valid string"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"modules_to_save": ["score", "lm_head"]}, "lm_head"),
        ({"modules_to_save": ["model.embed_tokens"]}, "embed_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"setting_of_tomorrow": True}, "setting_of_tomorrow"),
        ({"use_dora": "yes"}, "use_dora"),
        ({"r": 0}, "r: .* found 0"),
        ({"r": "8"}, "r: .* found '8'"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"rank_pattern": {"q_(proj": 4}}, "regular expression"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"r": 8}, r"lora_A.weight has shape \(4, 32\); expected \(8, 32\)"),
        ({"use_dora": True}, "no lora_magnitude_vector"),
    ],
    ids=str,
)
def test_settings_refused_by_name(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(write_adapter(tmp_path / "a", settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (f"{ROOT}.model.embed_tokens.weight", (64, 32), "embeddings"),
        (f"{ROOT}.model.embed_tokens.lora_embedding_A", (4, 64), "embeddings"),
        (f"{ROOT}.lm_head.lora_A.weight", (4, 32), "vocabulary projection"),
        (f"{ROOT}.lm_head.weight", (64, 32), "vocabulary projection"),
        (f"{QUERY}.base_layer.bias", (32,), "biases"),
        (f"{QUERY}.lora_B.bias", (32,), "biases"),
        (f"{ROOT}.score.bias", (1,), "but no weight"),
        (f"{ROOT}.model.layers.0.mlp.experts.base_layer.lora_A.weight", (4, 32), "mixture of experts"),
        (f"{ROOT}.model.layers.0.block_sparse_moe.experts.0.w1.lora_A.weight", (4, 32), "mixture of experts"),
        (f"{ROOT}.model.layers.0.input_layernorm.weight", (32,), "input_layernorm.weight"),
        (f"{ROOT}.score.lora_A.weight", (4, 32), "score.lora_A"),
        (f"{QUERY}.lora_diag", (4,), "lora_diag"),
        ("model.layers.1.self_attn.q_proj.lora_A.weight", (4, 32), "expected base_model.model"),
        (f"{ROOT}.vision_tower.layers.1.q_proj.lora_A.weight", (4, 32), "vision_tower"),
        (f"{ROOT}.model.layers.2.self_attn.q_proj.lora_A.weight", (4, 32), "layer 2; the model has 2 layers"),
        (f"{ROOT}.model.layers.1.self_attn.q_proj.lora_A.weight", (4, 32), "has no lora_B"),
        (f"{ROOT}.layers.0.self_attn.q_proj.lora_A.weight", (4, 32), "no lora_B|twice"),
        (f"{QUERY}.lora_A.default.weight", (4, 32), "repeats"),
        (f"{QUERY}.lora_magnitude_vector", (32,), "use_dora is false"),
        (f"{QUERY}.lora_A.weight", (0,), "two matrices"),
        (f"{QUERY}.lora_B.weight", (32, 5), r"\(32, 5\); expected \(32, 4\)"),
        (f"{ROOT}.score.weight", (1, 31), r"\(1, 31\); expected \(labels, 32\), .* or \(1, 64\) for --head"),
        (f"{ROOT}.score.weight", (2, 64), r"\(2, 64\); expected \(labels, 32\)"),
        (f"{ROOT}.score.weight", (64,), r"\(64,\); expected \(labels, 32\)"),
    ],
)
def test_tensors_refused_by_name(tmp_path: Path, name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(write_adapter(tmp_path / "a", tensors={name: torch.ones(shape)}))
    assert "adapter_model.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "score.weight",
        "classifier.weight",
        "score.modules_to_save.default.weight",
        "score.modules_to_save.weight",
    ],
)
@pytest.mark.parametrize("shape", [(1, HIDDEN_SIZE), (2, HIDDEN_SIZE), (1, 2 * HIDDEN_SIZE)])
def test_names_and_shapes_of_the_score(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    score = torch.randn(shape)
    adapter = read(write_adapter(tmp_path / "a", tensors={f"{ROOT}.{name}": score}))
    assert adapter.score is not None
    assert torch.equal(adapter.score, score)


@pytest.mark.parametrize("suffix", ["", ".weight", ".default", ".default.weight"])
def test_names_of_the_magnitude(tmp_path: Path, suffix: str) -> None:
    tensors: dict[str, Tensor | None] = {f"{QUERY}.lora_magnitude_vector{suffix}": torch.ones(HIDDEN_SIZE)}
    adapter = read(write_adapter(tmp_path / "a", {"use_dora": True}, tensors))
    assert adapter.layers[0]["self_attn.q_proj"].magnitude is not None


@pytest.mark.parametrize("bad", [torch.ones(4, 32, dtype=torch.int8), torch.full((4, 32), torch.nan)])
def test_broken_numbers(tmp_path: Path, bad: Tensor) -> None:
    with pytest.raises(InputError, match=r"lora_A\.weight"):
        read(write_adapter(tmp_path / "a", tensors={f"{QUERY}.lora_A.weight": bad}))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"self_attn.q_proj.weight": (32, 64)}, r"lora_A.weight has shape \(4, 32\); expected \(4, 64\)"),
        ({"self_attn.q_proj.weight": (48, 32)}, r"lora_B.weight has shape \(32, 4\); expected \(48, 4\)"),
        ({"self_attn.q_proj.weight": (8, 32, 32)}, "expected a matrix"),
        ({"self_attn.qkv_proj.weight": (96, 32)}, "does not have; it has self_attn.qkv_proj.weight"),
    ],
)
def test_adapter_of_another_model(tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    adapter = read(write_adapter(tmp_path / "a"))
    with pytest.raises(InputError, match=message):
        check_shapes(adapter, shapes)
    check_shapes(adapter, shapes, layer_index=1)


def test_broken_and_missing_files(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    for broken in (whole[:-10], whole[:5], b"", b"version https://git-lfs.github.com/spec/v1\n" * 3):
        file.write_bytes(broken)
        with pytest.raises(InputError, match=r"adapter_model\.safetensors: not a complete"):
            read(folder)
    save_file({}, file)
    with pytest.raises(InputError, match="no tensors"):
        read(folder)
    file.unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: no such file"):
        read(folder)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"adapter_model\.bin: a pickle.*convert"):
        read(folder)
    for text in ("[1]", "{", None):
        (folder / "adapter_config.json").unlink()
        if text is not None:
            (folder / "adapter_config.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"adapter_config\.json"):
            read(folder)
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        read(tmp_path / "absent")
