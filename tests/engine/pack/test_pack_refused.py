"""Weights and settings that cannot be packed, refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from strata.engine.pack.config import PackConfig
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.types import InputError

from .packed_weights import read_all


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


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("int8", ("v_proj", "w2"), r"--plain: no linear layer is called 'w2'; expected some of down_proj, "),
        ("bf16", ("v_proj",), r"--plain: with --format bf16 all layers are; expected int8 or nf4"),
    ],
)
def test_layers_that_cannot_stay_plain(kind, names, message, checkpoint, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message) as caught:
        pack_checkpoint(PackConfig(model=checkpoint("llama-gqa"), format=kind, out=out, plain=names))
    assert "\n" not in str(caught.value)
    assert not out.exists()
