"""`strata train` from question file to adapter on a real decoder: a planted signal is learnt, then scored."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from strata.engine.questions.metrics import evaluate
from strata.scripts.cli import main

from ..sample_questions import write_jsonl

WORDS = [
    "river",
    "sea",
    "hill",
    "stone",
    "sand",
    "wind",
    "moon",
    "field",
    "bee",
    "light",
    "water",
    "valley",
    "sun",
    "ocean",
    "smith",
    "iron",
    "tin",
    "air",
]
MARKER = "copper"
PLAIN = ("--lora-r", "8", "--learning-rate", "0.01", "--head-lr-scale", "1", "--batch-questions", "16")
QUIET = ("--devices", "cpu", "--tensorboard", "no", "--save-every", "0", "--eval-every", "0")


def write_planted(path: Path, count: int, seed: int) -> Path:
    """Questions of four options of random words; the right one has the marker among them."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        options = [rng.sample(WORDS, 3) for _ in range(4)]
        answer = rng.randrange(4)
        options[answer][rng.randrange(3)] = MARKER
        rows.append(
            {
                "id": f"{seed}-{number}",
                "question": "Which is right: " + " ".join(rng.sample(WORDS, 4)),
                "options": [" ".join(words) for words in options],
                "answer": answer,
                "context": " ".join(rng.sample(WORDS, 6)),
            }
        )
    return write_jsonl(path, rows)


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(("--task", "binary"), id="binary", marks=pytest.mark.slow),
        pytest.param(("--task", "choice", "--streamed"), id="choice-streamed"),
    ],
)
def test_a_planted_signal_is_learnt(extra, checkpoint, tmp_path, score: Callable):
    model = checkpoint("llama-gqa")
    train = write_planted(tmp_path / "train.jsonl", 160, 0)
    held_out = write_planted(tmp_path / "test.jsonl", 60, 1)
    out = tmp_path / "run"
    asked = ["train", "--model", str(model), "--questions", str(train), "--out", str(out)]
    assert main([*asked, "--epochs", "4", *PLAIN, *QUIET, *extra]) == 0
    before = evaluate(score(model=model, questions=held_out, head="yes-no").scores)
    found = evaluate(score(model=model, questions=held_out, adapter=(out / "adapter",)).scores)
    assert before["map_at_3"] < 0.8
    assert found["map_at_3"] >= 0.98
    record = json.loads((out / "train.json").read_text())
    assert record["status"] == "done"
    history = record["measured"]["history"]["loss"]
    assert history[-1] < 0.2 * history[0]


def test_a_checkpoint_trained_whole_is_one_like_any_other(checkpoint, tmp_path, score: Callable):
    train = write_planted(tmp_path / "train.jsonl", 400, 0)
    held_out = write_planted(tmp_path / "test.jsonl", 60, 1)
    out = tmp_path / "run"
    asked = ["train", "--model", str(checkpoint("llama-tied")), "--questions", str(train), "--out", str(out)]
    settings = ("--full", "--learning-rate", "0.002", "--head-lr-scale", "5", "--batch-questions", "16")
    evaluated = ("--valid", str(held_out), "--epochs", "2", "--task", "choice")
    assert main([*asked, *settings, *QUIET, *evaluated]) == 0
    found = evaluate(score(model=out / "model", questions=held_out).scores)
    seen_in_training = json.loads((out / "train.json").read_text())["metrics"]
    assert found["map_at_3"] == pytest.approx(seen_in_training["map_at_3"])
    assert found["map_at_3"] > 0.9
    loaded = AutoModelForSequenceClassification.from_pretrained(out / "model")
    assert loaded.score.weight.shape == (1, loaded.config.hidden_size)
    assert loaded.config._attn_implementation == "sdpa"


def test_plan_prints_what_a_step_needs_and_trains_nothing(checkpoint, tmp_path, capsys):
    train = write_planted(tmp_path / "train.jsonl", 20, 0)
    out = tmp_path / "run"
    asked = ["train", "--model", str(checkpoint("llama-gqa")), "--questions", str(train), "--out", str(out)]
    assert main([*asked, *QUIET, "--plan", "--streamed"]) == 0
    printed = capsys.readouterr().out
    assert "on the device" in printed
    assert "layer inputs (host)" in printed
    assert not out.exists()


def test_plan_of_scoring_refuses_an_encoder_by_name(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    asked = ["plan", "--model", str(tmp_path), "--questions", str(tmp_path / "q.csv")]
    assert main(asked) == 2
    assert "is an encoder" in capsys.readouterr().err
