"""Packed folders as others read them: the engine scores them, transformers loads them."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from .packed_weights import decode_all, decode_by_reference, read_all


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


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_named_layers_stay_plain(kind, checkpoint, pack, score):
    """The rest is packed as ever; transformers loads the folder, and both compute with it as it is."""
    pytest.importorskip("compressed_tensors" if kind == "int8" else "bitsandbytes")
    model = checkpoint("llama-gqa")
    source, all_packed = read_all(model), read_all(pack(model, kind))
    out = pack(model, kind, plain=("v_proj", "down_proj"))
    packed = read_all(out)
    kept = {name for name in source if name.split(".")[-2] in ("v_proj", "down_proj")}
    assert len(kept) == 6
    assert all(torch.equal(packed[name], source[name]) for name in kept)
    rest = [name for name in packed if not any(name.startswith(one.removesuffix("weight")) for one in kept)]
    assert all(torch.equal(packed[name], all_packed[name]) for name in rest)
    loaded, info = hf.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    assert type(loaded.model.layers[1].self_attn.v_proj) is torch.nn.Linear
    exact = score(model=model).scores
    errors = [
        [
            abs(row.scores - other.scores).mean()
            for row, other in zip(score(model=one).scores, exact, strict=True)
        ]
        for one in (out, pack(model, kind))
    ]
    assert sum(errors[0]) < sum(errors[1])
