"""`--layers K` against transformers' own model with `num_hidden_layers=K`, with and without its final norm.

Bytes are counted by the reader; what lies beyond layer K is poisoned, so that using it would show.
"""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from strata.engine.adapters.trained_cut import write_trained_cut
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.first_layers import count_layers

from ..families import FAMILIES, LAYERS_PER_MODEL
from ..label_classifiers import (
    TEXTS,
    build_label_classifier,
    expected_logits,
    load_classifier,
    train_by_chance,
)
from ..reference import Reference
from ..sample_questions import write_jsonl

TOLERANCE = 1e-4


@pytest.fixture
def cut_reference(tmp_path):
    """`cut_reference(folder, K)` -> Reference of the model that transformers makes of the first K layers."""

    def build(folder, num_layers):
        config = hf.AutoConfig.from_pretrained(folder)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
        config.num_hidden_layers = num_layers
        out = tmp_path / f"first{num_layers}"
        hf.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).save_pretrained(
            out
        )
        return Reference(out)

    return build


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return build_label_classifier("qwen2", tmp_path_factory.mktemp("classifier"), bias=True)


@pytest.fixture
def classify(score, tmp_path):
    questions = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    return lambda model, **settings: score(model=model, questions=questions, task="classify", **settings)


def cut_classifier(folder, num_layers, adapter=None, *, norm=True):
    """transformers' classifier without its later layers, and without its final norm if so asked."""
    model = load_classifier(folder, adapter)
    decoder = (model.base_model.model if adapter else model).model
    decoder.layers = decoder.layers[:num_layers]
    decoder.config.num_hidden_layers = num_layers
    if not norm:
        decoder.norm = torch.nn.Identity()
    return model


def assert_logits_equal(run, expected):
    for row, logits in zip(run.scores, expected, strict=True):
        np.testing.assert_allclose(row.scores, logits.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_letters_after_two_of_three_layers(family, checkpoint, score, cut_reference):
    model = checkpoint(family)
    run = score(model=model, head="letters", layers=2)
    expected = cut_reference(model, 2).score(run.out, "letters")
    for row in run.scores:
        np.testing.assert_allclose(row.scores, expected[row.question.id], rtol=0, atol=TOLERANCE)
    assert run.record["plan"]["num_layers"] == 2


@pytest.mark.parametrize("head", ["loglik", "yes-no"])
def test_other_heads_on_tokens(head, checkpoint, score, cut_reference):
    model = checkpoint("llama-tied")
    run = score(model=model, head=head, layers=0.4, normalize="none")
    expected = cut_reference(model, 1).score(run.out, head.replace("-", "_"))
    for row in run.scores:
        np.testing.assert_allclose(row.scores, expected[row.question.id], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_classifier_at_every_layer(num_layers, norm, classifier, classify):
    run = classify(classifier, layers=num_layers, layers_norm="yes" if norm else "no")
    oracle = cut_classifier(classifier, num_layers, norm=norm)
    assert_logits_equal(run, expected_logits(oracle, classifier, TEXTS))
    assert run.record["plan"]["final_norm"] is norm


@pytest.mark.parametrize("family", ["llama-gqa", "gemma2", "mistral"])
def test_a_classifier_with_an_adapter_in_other_families(family, classify, tmp_path):
    model = build_label_classifier(family, tmp_path / "model", bias=True)
    adapter = train_by_chance(model, tmp_path / "lora", seed=2)
    run = classify(model, adapter=(adapter,), layers=2)
    assert_logits_equal(run, expected_logits(cut_classifier(model, 2, adapter), model, TEXTS))


def test_nothing_beyond_is_read(classifier, classify, tmp_path):
    """The last layer is NaN on disk; the bytes read are as planned, fewer by that layer (and the norm)."""
    whole = classify(classifier, layers=LAYERS_PER_MODEL)
    poisoned = tmp_path / "poisoned"
    shutil.copytree(classifier, poisoned)
    tensors = load_file(classifier / "model.safetensors")
    beyond = {name: weight for name, weight in tensors.items() if ".layers.2." in name}
    nan = {name: torch.full_like(weight, torch.nan) for name, weight in beyond.items()}
    save_file(tensors | nan, poisoned / "model.safetensors", metadata={"format": "pt"})
    run = classify(poisoned, layers=2)
    assert_logits_equal(run, [torch.from_numpy(row.scores) for row in classify(classifier, layers=2).scores])
    read, layer_bytes = run.record["measured"]["bytes_read"], sum(w.nbytes for w in beyond.values())
    assert read == run.record["plan"]["bytes_read"]
    assert read == whole.record["measured"]["bytes_read"] - layer_bytes
    bare = classify(poisoned, layers=2, layers_norm="no").record["measured"]["bytes_read"]
    assert bare == read - tensors["model.norm.weight"].nbytes
    with pytest.raises(FloatingPointError):
        classify(poisoned)


@pytest.mark.parametrize("num_adapters", [1, 2])
def test_what_adapters_have_beyond_is_left_out(num_adapters, classifier, classify, tmp_path):
    adapters = tuple(
        train_by_chance(classifier, tmp_path / f"lora{seed}", seed=seed) for seed in range(num_adapters)
    )
    run = classify(classifier, adapter=adapters, layers=2)
    found = [expected_logits(cut_classifier(classifier, 2, one), classifier, TEXTS) for one in adapters]
    for row, *logits in zip(run.scores, *found, strict=True):
        mean = torch.stack([one.softmax(0) for one in logits]).mean(0)
        np.testing.assert_allclose(row.probabilities, mean.numpy(), atol=TOLERANCE)


def test_an_adapter_says_where_it_was_trained(classifier, classify, tmp_path):
    adapter = train_by_chance(classifier, tmp_path / "lora", seed=1)
    write_trained_cut(adapter, layers=2, layers_norm=False)
    run = classify(classifier, adapter=(adapter,))
    oracle = cut_classifier(classifier, 2, adapter, norm=False)
    assert_logits_equal(run, expected_logits(oracle, classifier, TEXTS))
    for settings in ({"layers": 1}, {"layers_norm": "yes"}):
        with pytest.raises(InputError, match=r"was trained on 2 layers without the final norm; expected"):
            classify(classifier, adapter=(adapter,), **settings)


def test_resume_refuses_another_cut(classifier, classify, tmp_path):
    out = tmp_path / "run"
    first = classify(classifier, layers=2, out=out)
    for settings in ({"layers": 1}, {}, {"layers": 2, "layers_norm": "no"}):
        (out / "partial.jsonl").write_text(
            json.dumps({"fingerprint": fingerprint_of(first, classifier)}) + "\n"
        )
        with pytest.raises(InputError, match="--resume"):
            classify(classifier, out=out, resume=True, **settings)
    (out / "partial.jsonl").write_text(json.dumps({"fingerprint": fingerprint_of(first, classifier)}) + "\n")
    classify(classifier, out=out, resume=True, layers=2)


def fingerprint_of(run, model):
    """Of a run after two layers."""
    from strata.engine.machine.settings import MachineSettings
    from strata.engine.members.member import Member
    from strata.engine.scorer import Scorer

    member = Member(model=model, head="classify", layers=2)
    with Scorer.open([member], MachineSettings(devices="cpu", dtype="float32")) as scorer:
        return scorer.fingerprint(scorer.render([row.question for row in run.scores]))


@pytest.mark.parametrize(
    ("layers", "expected"), [(1, 1), (32, 32), (0.5, 16), (0.01, 1), (0.99, 32), (7.0, 7)]
)
def test_what_the_flag_means(layers, expected):
    assert count_layers(layers, 32) == expected


@pytest.mark.parametrize("layers", [0, -1, 33, 1.5, float("nan"), float("inf")])
def test_no_such_layer(layers):
    with pytest.raises(InputError, match=r"^--layers .* 32 layers; expected a whole number from 1 to 32, or"):
        count_layers(layers, 32)


def test_pack_writes_the_first_layers(checkpoint, score, tmp_path):
    from strata.engine.pack.config import PackConfig
    from strata.engine.pack.pack import pack_checkpoint

    model = checkpoint("gemma3")
    config = PackConfig(model=model, format="fp32", out=tmp_path / "packed", layers=2, verify=True)
    packed = pack_checkpoint(config).out
    assert open_checkpoint(packed).num_layers == 2
    assert not any(".layers.2." in name for name in load_file(next(packed.glob("*.safetensors"))))
    expected = score(model=model, head="letters", layers=2)
    for one, other in zip(score(model=packed, head="letters").scores, expected.scores, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
    loaded = hf.AutoModelForCausalLM.from_pretrained(packed)
    assert len(loaded.model.layers) == 2
