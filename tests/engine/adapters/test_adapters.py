"""Adapters give what PEFT itself gives, merged and unmerged, one or several."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from strata.engine.adapters import lora as lora_module
from strata.engine.adapters.adapter_file import check_shapes, read_adapter
from strata.engine.adapters.lora import Adapter, LoraWeights, dora_gain, merge
from strata.engine.adapters.lora_linear import lora_linear, set_active, wrap_linears
from strata.engine.types import InputError

HIDDEN_SIZE = 32
NUM_LAYERS = 2
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
# LoraConfig settings.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 12, "target_modules": ALL_LINEAR},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ALL_LINEAR},
    "dora-rslora": {
        "r": 3,
        "lora_alpha": 5,
        "use_dora": True,
        "use_rslora": True,
        "target_modules": ["v_proj"],
    },
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL_LINEAR,
        "rank_pattern": {
            "q_proj": 2,
            r"layers\.1\.mlp\.(up|down)_proj": 6,
            "^model.layers.0.self_attn.v_proj": 1,
        },
        "alpha_pattern": {"q_proj": 3, r".*\.1\.self_attn\..*": 32, "proj": 1000},
        "use_rslora": True,
    },
    "one-layer": {"r": 2, "layers_to_transform": [1], "target_modules": ["k_proj"]},
}
FAMILIES: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "phi3": (Phi3ForCausalLM, Phi3Config, {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "classifier": (LlamaForSequenceClassification, LlamaConfig, {"task_type": "SEQ_CLS"}),
    "bare": (LlamaModel, LlamaConfig, {}),
}


def merged_layer(weights: dict[str, torch.Tensor], lora: dict[str, LoraWeights]) -> dict[str, torch.Tensor]:
    """One layer's weights with an adapter merged."""
    merged = {f"{path}.weight": merge(weights[f"{path}.weight"], part) for path, part in lora.items()}
    return {**weights, **merged}


def make_model(family: str) -> PreTrainedModel:
    model_class, config_class, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, num_labels=1)).eval()
    for name, parameter in model.named_parameters():
        # Larger than the usual initialisation, so that the adapters' effect is not lost in rounding.
        scale = 0.5 if name.endswith("bias") else 0.15
        nn.init.normal_(parameter, mean=float("norm" in name), std=scale)
    return model


def save_adapter(model: PreTrainedModel, folder: Path, settings: dict[str, Any], seed: int = 1) -> Path:
    """Trains an adapter with PEFT, so to say: every trainable tensor is moved at random."""
    peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(**settings))
    torch.manual_seed(seed)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    peft_model.save_pretrained(folder)
    return folder


def run(model: nn.Module) -> Tensor:
    input_ids = torch.arange(1, 25).reshape(2, 12)
    with torch.inference_mode():
        output = model(input_ids, attention_mask=torch.ones_like(input_ids))
    return output[0]


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    return list(getattr(model, "model", model).layers)


def put_score(model: PreTrainedModel, adapter: Adapter) -> None:
    if adapter.score is not None:
        model.score.weight.data = adapter.score.to(model.dtype)


def merged_model(base: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    model = copy.deepcopy(base)
    for layer, lora in zip(decoder_layers(model), adapter.layers, strict=True):
        layer.load_state_dict(merged_layer(layer.state_dict(), lora))
    put_score(model, adapter)
    return model


def wrapped_model(base: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    model = copy.deepcopy(base)
    for layer, lora in zip(decoder_layers(model), adapter.layers, strict=True):
        names = list(layer.state_dict())
        wrap_linears(layer, adapter.module_paths)
        assert list(layer.state_dict()) == names
        set_active(layer, lora)
    put_score(model, adapter)
    return model


def layer_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in decoder_layers(model)[0].state_dict().items()}


def read(folder: Path, num_layers: int = NUM_LAYERS) -> Adapter:
    return read_adapter(folder, hidden_size=HIDDEN_SIZE, num_layers=num_layers)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", kind) for kind in KINDS]
    + [("qwen2", "dora"), ("qwen2", "patterns"), ("phi3", "plain"), ("phi3", "dora"), ("bare", "patterns")]
    + [("classifier", "plain"), ("classifier", "dora")],
)
def test_merged_and_unmerged_equal_peft(tmp_path: Path, family: str, kind: str) -> None:
    # In float64, so that only a difference in meaning can show; the adapter's own file stays float32.
    base = make_model(family)
    folder = save_adapter(base, tmp_path / "adapter", KINDS[kind] | FAMILIES[family][2])
    base = base.double()
    adapter = read(folder)
    check_shapes(adapter, layer_shapes(base))
    expected = run(PeftModel.from_pretrained(copy.deepcopy(base), folder).double().eval())
    assert (expected - run(base)).abs().max() > 1e-2

    assert (adapter.score is not None) == (family == "classifier")
    torch.testing.assert_close(run(merged_model(base, adapter)), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run(wrapped_model(base, adapter)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_equals_merge_and_unload(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    base = make_model("llama").to(dtype)
    folder = save_adapter(base, tmp_path / "adapter", KINDS[kind])
    unloaded = PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload()
    for ours, theirs in zip(
        decoder_layers(merged_model(base, read(folder))), decoder_layers(unloaded), strict=True
    ):
        weights = theirs.state_dict()
        for name, weight in ours.state_dict().items():
            assert weight.dtype == dtype
            # A sum in another order may round to the neighbouring bfloat16.
            torch.testing.assert_close(
                weight, weights[name], rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=1e-6
            )


def test_merge_in_row_blocks_and_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(37, 16)
    lora = LoraWeights(
        a=torch.randn(3, 16), b=torch.randn(37, 3), scaling=0.5, magnitude=torch.rand(37, dtype=torch.float16)
    )
    untouched = weight.clone()
    whole, gain = merge(weight, lora), dora_gain(weight, lora)
    assert torch.equal(weight, untouched)
    monkeypatch.setattr(lora_module, "_BLOCK_BYTES", 5 * 16 * 4)
    torch.testing.assert_close(dora_gain(weight, lora), gain)
    torch.testing.assert_close(merge(weight, lora, out=weight), whole)
    torch.testing.assert_close(weight, whole)


def test_unmerged_in_bfloat16_is_as_close_as_merged() -> None:
    torch.manual_seed(0)
    weight, x, bias = torch.randn(24, 64), torch.randn(2, 5, 64), torch.randn(24)
    lora = LoraWeights(
        a=torch.randn(4, 64), b=torch.randn(24, 4), scaling=2.0, magnitude=torch.rand(24) + 0.5
    )
    exact = lora_linear(x.double(), weight.double(), bias.double(), lora)
    half = [tensor.bfloat16() for tensor in (x, weight, bias)]
    actual = lora_linear(*half, lora.to("cpu", torch.bfloat16))
    merged = torch.nn.functional.linear(half[0], merge(half[1], lora), half[2])
    assert actual.dtype == torch.bfloat16
    assert (actual - exact).abs().max() <= 2 * (merged - exact).abs().max()


def test_several_adapters_side_by_side(tmp_path: Path) -> None:
    base = make_model("llama").double()
    kinds = ("plain", "dora", "one-layer")
    folders = [
        save_adapter(base, tmp_path / kind, KINDS[kind], seed=seed)
        for seed, kind in enumerate(kinds, start=7)
    ]
    adapters = [read(folder) for folder in folders]
    assert [adapter.name for adapter in adapters] == list(kinds)
    model = copy.deepcopy(base)
    layers = decoder_layers(model)
    for layer in layers:
        for adapter in adapters:
            wrap_linears(layer, adapter.module_paths)
    # Twice, so that a kept DoRA gain is used; the last round without any adapter.
    for adapter in [*adapters, *reversed(adapters), None]:
        for index, layer in enumerate(layers):
            set_active(layer, adapter and adapter.layers[index])
        expected = run(base if adapter is None else merged_model(base, adapter))
        torch.testing.assert_close(run(model), expected, rtol=1e-9, atol=1e-9)


def test_wrapped_on_meta_then_assigned(tmp_path: Path) -> None:
    base = make_model("qwen2")
    adapter = read(save_adapter(base, tmp_path / "adapter", KINDS["dora"]))
    layer = decoder_layers(base)[1]
    wrapped = copy.deepcopy(layer).to("meta")
    wrap_linears(wrapped, adapter.module_paths)
    set_active(wrapped, adapter.layers[1])
    wrapped.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(3, HIDDEN_SIZE)
    merged = merged_layer(layer.state_dict(), adapter.layers[1])
    expected = torch.nn.functional.linear(
        x, merged["self_attn.q_proj.weight"], merged["self_attn.q_proj.bias"]
    )
    torch.testing.assert_close(wrapped.self_attn.q_proj(x), expected, rtol=1e-5, atol=1e-5)


def test_what_an_adapter_tells(tmp_path: Path) -> None:
    folder = save_adapter(
        make_model("classifier"), tmp_path / "a", KINDS["one-layer"] | {"task_type": "SEQ_CLS"}
    )
    adapter = read(folder)
    assert adapter.layers[0] == {}
    assert adapter.module_paths == ("self_attn.k_proj",)
    lora = adapter.layers[1]["self_attn.k_proj"]
    assert lora.num_bytes == 4 * (2 * HIDDEN_SIZE + 16 * 2)
    assert adapter.score is not None
    assert adapter.num_bytes == lora.num_bytes + adapter.score.nbytes


def test_wrap_and_activate_refuse_what_is_not_there() -> None:
    layer = decoder_layers(make_model("llama"))[0]
    with pytest.raises(InputError, match=r"'self_attn\.w'.* nothing"):
        wrap_linears(layer, ["self_attn.w"])
    with pytest.raises(InputError, match=r"'input_layernorm'.* LlamaRMSNorm"):
        wrap_linears(layer, ["input_layernorm"])
    with pytest.raises(ValueError, match="not wrapped"):
        set_active(
            layer, {"self_attn.q_proj": LoraWeights(a=torch.ones(1, 2), b=torch.ones(2, 1), scaling=1.0)}
        )


def test_names_that_peft_writes(tmp_path: Path) -> None:
    folder = save_adapter(make_model("classifier"), tmp_path / "a", KINDS["dora"] | {"task_type": "SEQ_CLS"})
    names = set(load_file(folder / "adapter_model.safetensors"))
    suffixes = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    assert {f"{QUERY}.{suffix}" for suffix in suffixes} | {"base_model.model.score.weight"} <= names
