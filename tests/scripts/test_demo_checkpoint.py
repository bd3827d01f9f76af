"""The demo's checkpoint is whole, repeatable and loadable; its questions are fair; its printout is plain."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from strata.engine.metrics import evaluate
from strata.engine.types import InputError, Question, QuestionScores
from strata.scripts.demo import print_demo, run_demo, shorten
from strata.scripts.demo_checkpoint import QUESTIONS_PATH, RECEIPT_NAME, make_demo_checkpoint

LETTERS = "ABCDE"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_checkpoint(tmp_path_factory.mktemp("demo") / "new" / "checkpoint")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with QUESTIONS_PATH.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokenizer_adds_bos_and_loses_nothing(checkpoint: Path, rows: list[dict[str, str]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.is_fast
    for text in (rows[0]["context"], " two  spaces\n\n### Response:\n", "na\u00efve \u4e2d"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == 0
        assert tokenizer.decode(ids[1:]) == text
    assert tokenizer("a", add_special_tokens=False)["input_ids"] != tokenizer("a")["input_ids"]


def test_the_longest_question_fits_the_window(checkpoint: Path, rows: list[dict[str, str]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    longest = max(len(tokenizer(" ".join(row.values()))["input_ids"]) for row in rows)
    assert 150 < longest < 1024


def test_model_loads_and_is_finite(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True)
    assert model.config.max_position_embeddings == 2048
    assert not model.config.tie_word_embeddings
    assert model.dtype == torch.float32
    with torch.inference_mode():
        logits = model(torch.tensor([[0, 5, 7, 11]])).logits
    assert logits.shape == (1, 4, model.config.vocab_size)
    assert bool(logits.isfinite().all())
    assert float(logits.std()) > 0.1


def test_same_seed_same_bytes_and_the_random_state_is_untouched(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again = make_demo_checkpoint(tmp_path / "again")
    assert torch.equal(state, torch.random.get_rng_state())
    assert read_all(again) == read_all(checkpoint)
    other = load_file(make_demo_checkpoint(tmp_path / "other", seed=1) / "model.safetensors")
    mine = load_file(checkpoint / "model.safetensors")
    assert not torch.equal(mine["lm_head.weight"], other["lm_head.weight"])


def test_a_whole_checkpoint_is_reused(tmp_path: Path) -> None:
    out = make_demo_checkpoint(tmp_path / "checkpoint")
    before = (out / "model.safetensors").stat().st_mtime_ns
    make_demo_checkpoint(out)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("damage", ["truncate", "remove", "receipt", "seed"])
def test_a_damaged_or_different_checkpoint_is_made_anew(
    checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    out = make_demo_checkpoint(tmp_path / "checkpoint", seed=7 if damage == "seed" else 0)
    weights = out / "model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "remove":
        (out / "tokenizer.json").unlink()
    elif damage == "receipt":
        (out / RECEIPT_NAME).write_text("[1, 2")
    make_demo_checkpoint(out)
    assert read_all(out) == read_all(checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_foreign_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    for name in ("model", "file"):
        with pytest.raises(InputError, match=name):
            make_demo_checkpoint(tmp_path / name)
    assert (tmp_path / "model" / "config.json").read_text() == "{}"
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert read_all(make_demo_checkpoint(tmp_path / "empty")) == read_all(checkpoint)


def test_receipt_says_the_model_is_untrained(checkpoint: Path) -> None:
    assert "never trained" in json.loads((checkpoint / RECEIPT_NAME).read_text())["note"]


def test_questions_are_well_formed(rows: list[dict[str, str]]) -> None:
    assert 24 <= len(rows) <= 30
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == ["id", "prompt", "context", *LETTERS, "answer"]
        assert all(value.isascii() and value == value.strip() and value for value in row.values())
        assert 120 <= len(row["context"].split()) <= 220, row["id"]
        assert len({row[letter] for letter in LETTERS}) == 5
        assert all(5 <= len(row[letter].split()) <= 25 for letter in LETTERS), row["id"]


def test_neither_letter_nor_length_gives_the_answer_away(rows: list[dict[str, str]]) -> None:
    per_letter = Counter(row["answer"] for row in rows)
    assert sorted(per_letter) == list(LETTERS)
    assert max(per_letter.values()) - min(per_letter.values()) <= 1
    ranks = Counter(rank_by_length(row) for row in rows)
    assert max(ranks.values()) <= len(rows) / 5 + 2


def rank_by_length(row: dict[str, str]) -> int:
    """How many options are longer than the right one."""
    return sum(len(row[letter]) > len(row[row["answer"]]) for letter in LETTERS)


def test_printout_names_model_metric_heuristics_and_files(rows: list[dict[str, str]], tmp_path: Path) -> None:
    scores = [uniform_scores(row) for row in rows]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "submission.csv").touch()
    console = Console(width=120, record=True, file=io.StringIO())
    print_demo(console, scores, tmp_path)
    text = console.export_text()
    metrics = evaluate(scores)
    assert metrics is not None
    assert f"{metrics['map_at_3']:.3f}" in text
    assert "0.367" in text
    assert f"{metrics['heuristics']['longest_option_map_at_3']:.3f}" in text
    assert "never trained" in text
    assert str(tmp_path / "run" / "submission.csv") in text
    assert "scores.parquet" not in text
    assert rows[0]["id"] in text


def uniform_scores(row: dict[str, str]) -> QuestionScores:
    options = tuple(row[letter] for letter in LETTERS)
    question = Question(
        id=row["id"],
        prompt=row["prompt"],
        options=options,
        answer=LETTERS.index(row["answer"]),
        context=row["context"],
    )
    return QuestionScores(question=question, scores=np.zeros(5), probabilities=np.full(5, 0.2))


def test_shorten_keeps_the_beginning() -> None:
    assert shorten("short", 10) == "short"
    assert shorten("a long sentence", 10) == "a long..."


def test_demo_runs_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("strata.engine.score", reason="engine/score.py is not written yet")
    assert run_demo(tmp_path) == 0
    assert "never trained" in capsys.readouterr().out
    submission = (tmp_path / "run" / "submission.csv").read_text(encoding="utf-8").splitlines()
    assert len(submission) == 1 + 25
