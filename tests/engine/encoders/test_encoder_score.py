"""An encoder's scores are those of transformers called plainly, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model

from strata.engine.run.score import ScoreRun
from strata.engine.types import Question

from ...sample_questions import QUESTIONS, write_jsonl
from .tiny_encoder import CONFIGS, LONG, build_encoder

FAMILIES = tuple(CONFIGS)


def plain_scores(folder: Path, question: Question | dict, max_length: int = 64) -> np.ndarray:
    """The documented way: one question, its rows padded to the longest, the context alone truncated."""
    row = question if isinstance(question, dict) else vars(question) | {"question": question.prompt}
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    return plain_logits(model, tokenizer, row, max_length)


def plain_logits(model: torch.nn.Module, tokenizer: object, row: dict, max_length: int = 64) -> np.ndarray:
    seconds = [f"{row['question']} {option}" for option in row["options"]]
    inputs = tokenizer(
        [row["context"]] * len(seconds),
        seconds,
        truncation="only_first" if row["context"] else False,
        max_length=max_length,
        padding=True,
        return_tensors="pt",
    )
    if getattr(model.config, "type_vocab_size", 2) == 1:
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**{name: values[None] for name, values in inputs.items()}).logits[0].double().numpy()


def as_row(number: int, context: str) -> dict:
    return dict(QUESTIONS[number % len(QUESTIONS)]) | {"id": str(number), "context": context}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers_question_by_question(
    family: str, encoder: Callable[..., Path], score: Callable[..., ScoreRun]
) -> None:
    folder = encoder(family)
    for row, question in zip(score(folder).scores, QUESTIONS, strict=True):
        np.testing.assert_allclose(row.scores, plain_scores(folder, question), atol=1e-5)
        assert np.ptp(row.scores) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_batches_or_devices(
    family: str, encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    rows = [as_row(number, "The moon pulls. " * (number % 5)) for number in range(17)]
    file = write_jsonl(tmp_path / "many.jsonl", rows)
    runs = [
        score(encoder(family), questions=file, micro_batch_tokens=tokens, devices=devices)
        for tokens, devices in ((1, "cpu"), (150, "cpu"), (100_000, "cpu"), (200, "cpu,cpu"))
    ]
    assert [run.record["plan"]["num_micro_batches"] for run in runs[:3:2]] == [17, 1]
    assert runs[0].record["measured"]["padding_tokens"] < runs[2].record["measured"]["padding_tokens"]
    for run in runs[1:]:
        for alone, together in zip(runs[0].scores, run.scores, strict=True):
            np.testing.assert_allclose(together.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_contexts_are_cut_to_the_window_and_to_max_tokens(
    family: str, encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "long.jsonl", [as_row(3, LONG), as_row(0, "")])
    window = 62 if family == "roberta" else 64
    run = score(encoder(family), questions=file)
    expected = plain_scores(encoder(family), as_row(3, LONG), window)
    np.testing.assert_allclose(run.scores[0].scores, expected, atol=1e-5)
    assert run.record["measured"]["truncated_questions"] == 1
    shorter = score(encoder(family), questions=file, max_tokens=40)
    expected = plain_scores(encoder(family), as_row(3, LONG), 40)
    np.testing.assert_allclose(shorter.scores[0].scores, expected, atol=1e-5)


def test_relative_positions_reach_beyond_the_window_and_a_table_does_not(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "long.jsonl", [as_row(3, LONG)])
    far = score(encoder("deberta"), questions=file, max_tokens=120)
    expected = plain_scores(encoder("deberta"), as_row(3, LONG), 120)
    np.testing.assert_allclose(far.scores[0].scores, expected, atol=1e-5)
    near = score(encoder("bert"), questions=file, max_tokens=120)
    assert near.record["plan"]["window_tokens"] == 64
    assert any("exceeds the model's window of 64" in line for line in near.record["warnings"]["messages"])


@pytest.fixture(scope="module")
def adapters(encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trained-looking adapters on a plain BERT, whose choice heads are their own."""
    folders = []
    for seed in (1, 2):
        model = hf.AutoModelForMultipleChoice.from_pretrained(encoder("bert", with_head=False))
        settings = LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"])
        adapted = get_peft_model(model, settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, weight in sorted(adapted.named_parameters()):
                if weight.requires_grad:
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        folders.append(tmp_path_factory.mktemp("adapters") / f"adapter{seed}")
        adapted.save_pretrained(str(folders[-1]))
    return folders


def peft_scores(base: Path, adapter: Path) -> list[np.ndarray]:
    model = hf.AutoModelForMultipleChoice.from_pretrained(base)
    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    return [plain_logits(adapted, tokenizer, question) for question in QUESTIONS]


def test_adapters_bring_the_head_of_a_plain_encoder_and_are_members(
    encoder: Callable[..., Path], score: Callable[..., ScoreRun], adapters: Sequence[Path]
) -> None:
    base = encoder("bert", with_head=False)
    alone = [peft_scores(base, adapter) for adapter in adapters]
    one = score(base, adapter=(adapters[0],))
    for row, expected in zip(one.scores, alone[0], strict=True):
        np.testing.assert_allclose(row.scores, expected, atol=1e-5)
    both = score(base, adapter=tuple(adapters))
    for number, row in enumerate(both.scores):
        for adapter, expected in zip(adapters, alone, strict=True):
            np.testing.assert_allclose(row.member_scores[adapter.name], expected[number], atol=1e-5)
        means = np.mean([np.exp(own[number]) / np.exp(own[number]).sum() for own in alone], axis=0)
        np.testing.assert_allclose(row.probabilities, means, atol=1e-5)


def test_float16_that_overflows_is_computed_in_float32(
    score: Callable[..., ScoreRun], tmp_path: Path
) -> None:
    folder = build_encoder("bert", tmp_path / "huge")
    model = hf.AutoModelForMultipleChoice.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.mul_(60000)
        model.classifier.bias.fill_(60000)
    model.save_pretrained(folder)
    run = score(folder, dtype="float16")
    assert run.record["measured"]["float32_micro_batches"] > 0
    assert all(np.isfinite(row.scores).all() for row in run.scores)
