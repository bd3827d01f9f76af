"""`strata probe`: readouts of every layer against transformers' hidden states, and what is fitted on them."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers as hf

from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.probe.config import ProbeConfig
from strata.engine.probe.cross_validation import LayerReport, cut_into_folds, enough_layers, probe_layers
from strata.engine.probe.layer_readouts import read_layers
from strata.engine.types import InputError, Question
from strata.scripts.cli import main

from ...label_classifiers import TEXTS
from ...sample_questions import write_jsonl

LABELED = [row | {"label": label} for row, label in zip(TEXTS, "xyxy", strict=True)]


def config_of(model, questions, folder, **changes):
    machine = MachineSettings(devices="cpu", dtype="float32")
    plain = {"model": model, "questions": questions, "out": folder, "folds": 2, "machine": machine}
    return ProbeConfig(**(plain | changes))


@pytest.mark.parametrize("norm", ["yes", "no"])
@pytest.mark.parametrize("family", ["llama-gqa", "gemma2"])
def test_readouts_are_the_hidden_states_of_every_layer(family, norm, checkpoint, fixed_rates, tmp_path):
    model = checkpoint(family)
    texts = write_jsonl(tmp_path / "texts.jsonl", LABELED)
    config = config_of(model, texts, tmp_path, task="classify", layers_norm=norm)
    session = Session(folder=tmp_path, overrides=PlanOverrides(num_groups=2, micro_batch_tokens=8))
    found = read_layers(config, session)
    oracle = hf.AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(model)
    before_norm = []
    oracle.norm.register_forward_hook(lambda module, inputs, output: before_norm.append(inputs[0]))
    for place, row in enumerate(LABELED):
        with torch.no_grad():
            outputs = oracle(**tokenizer(row["text"], return_tensors="pt"), output_hidden_states=True)
            states = [*outputs.hidden_states[1:-1], before_norm[-1]]
            if norm == "yes":
                states = [oracle.norm(state) for state in states]
        expected = torch.stack([state[0, -1] for state in states]).numpy()
        np.testing.assert_allclose(
            found.states[:, place], expected, rtol=0, atol=1e-4 * np.abs(expected).max()
        )


def test_a_row_an_option(checkpoint, questions, fixed_rates, tmp_path):
    found = read_layers(config_of(checkpoint("llama-gqa"), questions, tmp_path), Session(folder=tmp_path))
    num_options = sum(len(question.options) for question in found.questions)
    assert found.states.shape == (3, num_options, 32)


def planted(num_questions, *, is_text):
    """Three layers, of which the second alone tells the answer, in one direction."""
    rng = np.random.default_rng(0)
    names = ("a", "b", "c")
    questions, rows = [], []
    for number in range(num_questions):
        answer = int(rng.integers(3))
        questions.append(Question(id=str(number), prompt="x", options=names, answer=answer, is_text=is_text))
        block = rng.normal(size=(3, 1 if is_text else 3, 8))
        if is_text:
            block[1, 0, :3] += 6 * (np.arange(3) == answer)
        else:
            block[1, answer, 0] += 6
        rows.append(block)
    return questions, np.concatenate(rows, axis=1).astype(np.float32)


@pytest.mark.parametrize("is_text", [False, True])
def test_the_layer_that_tells_is_found(is_text):
    questions, states = planted(90, is_text=is_text)
    first, second, third = probe_layers(questions, states, folds=5, seed=0)
    assert second.accuracy > 0.95
    assert second.layers == 2
    assert max(first.accuracy, third.accuracy) < 0.6
    assert second.map_at_3 >= second.accuracy


def test_no_question_is_answered_by_a_probe_that_saw_it():
    """Readouts of pure chance, as many numbers as rows: whoever fits and asks the same rows finds all."""
    questions, _ = planted(40, is_text=False)
    states = np.random.default_rng(1).normal(size=(1, 120, 200)).astype(np.float32)
    (report,) = probe_layers(questions, states, folds=4, seed=0)
    assert report.accuracy < 0.6
    places = np.concatenate(cut_into_folds(40, 4, 0))
    assert sorted(places) == list(range(40))


def test_the_command(checkpoint, tmp_path, capsys, fixed_rates):
    texts = write_jsonl(tmp_path / "texts.jsonl", LABELED * 2)
    rows = [json.loads(line) | {"id": number} for number, line in enumerate(texts.read_text().splitlines())]
    write_jsonl(texts, rows)
    asked = [
        "probe",
        "--model",
        str(checkpoint("llama-gqa")),
        "--questions",
        str(texts),
        "--task",
        "classify",
    ]
    assert main([*asked, "--out", str(tmp_path / "out"), "--devices", "cpu", "--folds", "2"]) == 0
    report = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert [layer["layers"] for layer in report["layers"]] == [1, 2, 3]
    maps = [layer["map_at_3"] for layer in report["layers"]]
    enough = min(number for number, value in enumerate(maps, 1) if value >= 0.99 * maps[-1])
    assert report["layer_fraction_at_99_percent"] == pytest.approx(enough / 3)
    assert "MAP@3" in capsys.readouterr().out


def test_the_fewest_layers_that_are_enough():
    maps = (0.3, 0.596, 0.594, 0.5, 0.6)
    reports = [
        LayerReport(layers=number, map_at_3=value, accuracy=0.0) for number, value in enumerate(maps, 1)
    ]
    assert enough_layers(reports) == 2
    assert enough_layers(reports[:1]) == 1


def test_without_scikit_learn(checkpoint, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    asked = ["probe", "--model", str(checkpoint("llama-gqa")), "--questions", str(questions)]
    assert main([*asked, "--out", str(tmp_path / "out")]) == 2
    assert 'pip install "strata-score[retrieval]"' in capsys.readouterr().err


def test_questions_without_an_answer(checkpoint, tmp_path):
    texts = write_jsonl(tmp_path / "t.jsonl", [*LABELED, {"id": "z", "text": "a", "label": None}])
    config = config_of(checkpoint("llama-gqa"), texts, tmp_path, task="classify")
    with pytest.raises(InputError, match=r"row 5: no answer; a probe is fitted on answered questions"):
        read_layers(config, Session(folder=tmp_path))
