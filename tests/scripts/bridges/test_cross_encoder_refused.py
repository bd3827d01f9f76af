"""Rerankers that cannot be opened, and inputs that are none: told in a line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers as hf

from strata.engine.machine.settings import MachineSettings
from strata.engine.types import InputError
from strata.scripts.bridges.cross_encoder import StrataCrossEncoder

from . import tiny_rerankers

pytestmark = pytest.mark.usefixtures("fixed_rates")

FLOAT32 = MachineSettings(devices="cpu", dtype="float32")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("rerankers")
    return {
        "causal": tiny_rerankers.build_causal(root / "causal"),
        "chat": tiny_rerankers.build_causal(root / "chat", chat=True),
        "decoder": tiny_rerankers.build_decoder(root / "decoder", 1),
        "decoder-3": tiny_rerankers.build_decoder(root / "decoder-3", 3),
    }


@pytest.fixture
def model(built):
    with StrataCrossEncoder(built["decoder"], machine=FLOAT32) as opened:
        yield opened


def test_scores_are_those_of_transformers(built, model):
    """Each pair alone through transformers: the oracle where sentence-transformers is absent."""
    plain = hf.AutoModelForSequenceClassification.from_pretrained(built["decoder"]).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(built["decoder"])
    pairs = [("Who turns?", "The tide."), ("Who turns?", "A bee, by the light of the sky.")]
    found = model.predict(pairs)
    for pair, score in zip(pairs, found, strict=True):
        with torch.no_grad():
            logit = plain(**tokenizer(*pair, return_tensors="pt")).logits[0, 0]
        assert score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("text", r"inputs\[0\]: 'text'; expected a pair of texts"),
        ([("a", "b"), ("c",)], r"inputs\[1\]: \('c',\); expected a pair"),
        ([("a", 3)], r"inputs\[0\]: \('a', 3\); expected a pair"),
        ([["a", "b", "c"]], r"inputs\[0\]: .*expected a pair"),
        (np.array([["a"], ["b"]]), r"inputs\[0\]: .*expected a pair"),
    ],
)
def test_what_is_no_pair(model, inputs, message):
    with pytest.raises(InputError, match=message):
        model.predict(inputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"prompt_name": "judge"}, r"prompt_name='judge': expected one of the model's prompts \(none\)"),
        ({"processing_kwargs": {}}, "predict: argument 'processing_kwargs' is unknown"),
    ],
)
def test_settings_that_mean_nothing(model, settings, message):
    with pytest.raises(InputError, match=message):
        model.predict([("a", "b")], **settings)


def test_a_pair_without_a_token(model):
    with pytest.raises(InputError, match=r"inputs\[1\]: the pair becomes no token"):
        model.predict([("a", "b"), ("", "")])


def test_tokens_that_the_model_does_not_have(built, tmp_path):
    folder = shutil.copytree(built["causal"], tmp_path / "other")
    edit(folder, "1_LogitScore/config.json", true_token_id=10**6)
    with (
        StrataCrossEncoder(folder, machine=FLOAT32) as model,
        pytest.raises(InputError, match="token id 1000000; expected ids below 384"),
    ):
        model.predict([("a", "b")])


def test_settings_without_effect_are_told(model, caplog):
    model.predict([("a", "b")], device="cpu", chunk_size=3)
    assert "device has no effect" in caplog.text
    assert "chunk_size has no effect" in caplog.text


def test_progress_is_told_on_stderr_alone(model, monkeypatch, capsys):
    monkeypatch.setattr("strata.engine.progress.LINE_EVERY_S", 0.0)
    model.predict([("a", "b")], show_progress_bar=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pairs: 100%")


def test_several_labels_cannot_be_ranked(built):
    with (
        StrataCrossEncoder(built["decoder-3"], machine=FLOAT32) as model,
        pytest.raises(InputError, match="rank: the model has 3 labels; expected 1"),
    ):
        model.rank("a", ["b"])


def edit(folder, name, **changes):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "not a directory; expected a reranker's folder"),
        (
            lambda folder: edit(folder, "1_LogitScore/config.json", false_token_id=None),
            "LogitScore without false_token_id",
        ),
        (
            lambda folder: edit(folder, "1_LogitScore/config.json", true_token_id="yes"),
            "config.json: true_token_id: .*integer",
        ),
        (lambda folder: (folder / "modules.json").write_text("{}"), "modules.json: modules: "),
        (
            lambda folder: (folder / "modules.json").write_text('[{"path": "", "type": "a.Pooling"}]'),
            "modules.json: modules Pooling; expected Transformer",
        ),
        (
            lambda folder: (folder / "modules.json").write_text('[{"path": "../..", "type": "a.Router"}]'),
            "modules.json: modules",
        ),
        (lambda folder: (folder / "modules.json").unlink(), "the tokenizer has no token 'yes'"),
    ],
)
def test_folders_that_are_no_reranker(spoil, message, built, tmp_path):
    folder = shutil.copytree(built["causal"], tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(InputError, match=message) as raised:
        StrataCrossEncoder(folder, machine=FLOAT32)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content }}", "does not show what the document says"),
        ("{{ raise_exception('only users') }}", "refuses the roles query and document: only users"),
    ],
)
def test_chat_templates_that_take_no_pair(template, message, built, tmp_path):
    folder = shutil.copytree(built["chat"], tmp_path / "spoilt")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=message):
        StrataCrossEncoder(folder, machine=FLOAT32)


def test_an_activation_from_elsewhere_is_not_loaded(built, tmp_path, caplog):
    folder = shutil.copytree(built["causal"], tmp_path / "other")
    edit(folder, "config_sentence_transformers.json", activation_fn="os.system")
    with StrataCrossEncoder(folder, machine=FLOAT32) as model:
        assert isinstance(model.activation_fn, torch.nn.Sigmoid)
    assert "activation os.system is no module of torch.nn" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, r"max_length=0: expected at least 1"),
        ({"max_length": 2.5}, r"max_length=2.5: expected at least 1, a whole number"),
        (
            {"prompts": {"web": "search: "}, "default_prompt_name": "wiki"},
            r"default_prompt_name='?wiki.*'web'",
        ),
        ({"prompts": {"web": 3}}, r"prompts=.*expected texts by name"),
    ],
)
def test_arguments_of_opening(settings, message, built):
    with pytest.raises(InputError, match=message) as caught:
        StrataCrossEncoder(built["decoder"], machine=FLOAT32, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model.rank("q", "one text"), r"documents: .*expected a list of texts"),
        (lambda model: model.rank("q", ["a"], top_k=-1), r"top_k=-1: expected at least 0"),
        (lambda model: model.predict([("a", "b")], batch_size=0), r"batch_size=0: expected at least 1"),
        (lambda model: model.predict([("a", "b")], prompt=3), r"prompt=3: expected a text"),
        (lambda model: model.predict([("a", "b")], activation_fn="tanh"), r"activation_fn=.*a function"),
        (lambda model: model.predict([("a", "b")], activation_fn=lambda x: 1), r"activation_fn: gave int"),
    ],
)
def test_arguments_of_calls(ask, message, model):
    with pytest.raises(InputError, match=message) as caught:
        ask(model)
    assert "\n" not in str(caught.value)
