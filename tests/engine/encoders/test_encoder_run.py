"""An encoder's run leaves what any run leaves, goes on where it was interrupted, and ends in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from strata.engine import deadline
from strata.engine.encoders import batches
from strata.engine.memory_errors import MemoryRanOutError
from strata.engine.results.tables import read_scores
from strata.engine.run.score import ScoreRun
from strata.engine.types import InputError

from ...sample_questions import QUESTIONS


def test_a_run_leaves_the_artefacts_of_any_run(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun]
) -> None:
    run = score(encoder("deberta"), save_prompts=True, limit=3)
    kept = read_scores(run.out / "scores.parquet")
    assert [row.question.id for row in kept] == ["tide", "07", "\u00e9t\u00e9"]
    assert (run.out / "submission.csv").read_text(encoding="utf-8").startswith("id,prediction\ntide,")
    assert "<html" in (run.out / "report.html").read_text(encoding="utf-8")
    record = json.loads((run.out / "run.json").read_text())
    assert record["status"] == "done"
    assert record["plan"]["head"] == "multiple-choice"
    assert record["metrics"]["num_answered"] == 3
    measured = record["measured"]
    assert measured["tokens_computed"] == record["plan"]["tokens_computed"] > 0
    assert measured["peak_host_bytes"] >= measured["baseline_host_bytes"] > 0
    prompts = [json.loads(line) for line in (run.out / "prompts.jsonl").read_text().splitlines()]
    tokenizer = hf.AutoTokenizer.from_pretrained(encoder("deberta"))
    first = QUESTIONS[0]
    expected = tokenizer(first["context"], f"{first['question']} {first['options'][0]}")["input_ids"]
    assert prompts[0]["branches"][0]["ids"] == expected
    assert not (run.out / "partial.jsonl").exists()


def test_interrupted_run_is_resumed_to_the_same_scores(
    encoder: Callable[..., Path],
    score: Callable[..., ScoreRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = score(encoder("bert"))
    plain, calls = batches.choice_logits, []

    def fail_at_third(model: object, inputs: dict) -> torch.Tensor:
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(model, inputs)

    out = tmp_path / "resumed"
    monkeypatch.setattr(batches, "choice_logits", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        score(encoder("bert"), out=out, micro_batch_tokens=1)
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    with pytest.raises(InputError, match="another job"):
        score(encoder("bert"), out=out, micro_batch_tokens=1, resume=True, max_tokens=30)
    run = score(encoder("bert"), out=out, micro_batch_tokens=1, resume=True)
    assert run.record["measured"]["resumed_questions"] == 2
    assert len(calls) == 5
    for resumed, once in zip(run.scores, whole.scores, strict=True):
        np.testing.assert_allclose(resumed.scores, once.scores, atol=1e-5)


def test_questions_after_the_deadline_get_the_longest_option_first(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "SAFETY", 1e9)
    run = score(encoder("bert"), micro_batch_tokens=1, deadline="1h")
    unreached = run.record["warnings"]["rows"]["not scored before the deadline"]["ids"]
    assert len(unreached) == 3
    assert (run.out / "partial.jsonl").exists()
    by_id = {row.question.id: row for row in run.scores}
    assert by_id["07"].order[0] == (0 if "07" in unreached else by_id["07"].order[0])


def allow_rows(monkeypatch: pytest.MonkeyPatch, num_rows: int) -> None:
    """Memory ends where a batch has more rows."""
    plain = batches.choice_logits

    def fail_if_large(model: object, inputs: dict) -> torch.Tensor:
        if len(inputs["input_ids"]) > num_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(model, inputs)

    monkeypatch.setattr(batches, "choice_logits", fail_if_large)


def test_batches_that_do_not_fit_in_memory_are_cut(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(encoder("bert"))
    allow_rows(monkeypatch, max(len(question["options"]) for question in QUESTIONS))
    run = score(encoder("bert"))
    assert run.record["measured"]["halved_micro_batches"] > 0
    (message,) = run.record["warnings"]["messages"]
    assert message.startswith("memory ran out")
    for cut, once in zip(run.scores, whole.scores, strict=True):
        np.testing.assert_allclose(cut.scores, once.scores, atol=1e-5)


def test_a_question_that_does_not_fit_alone_is_told(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_rows(monkeypatch, 0)
    with pytest.raises(MemoryRanOutError, match=r"one question at a time; .* --max-tokens below \d+"):
        score(encoder("bert"))
