"""An encoder's gradients are those of one plain batch, and what it saves is read by transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel

from strata.engine.config import ScoreConfig
from strata.engine.run.score import score_questions
from strata.engine.types import InputError, Prompt, Question
from strata.training.config import TrainConfig
from strata.training.readers.encoder_reader import EncoderReader, open_encoder_reader
from strata.training.types import Example

from ...engine.encoders.tiny_encoder import build_encoder
from ...sample_questions import QUESTIONS, write_jsonl

CHOICES = [
    Question(
        id=row["id"],
        prompt=row["question"],
        options=tuple(row["options"]),
        answer=row["answer"],
        context=row["context"],
    )
    for row in QUESTIONS
]
SOFT = np.array([0.5, 0.1, 0.1, 0.2, 0.1])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("encoders")

    def build(family: str = "bert", with_head: bool = True, dropout: float = 0.0) -> Path:
        folder = root / f"{family}-{with_head}-{dropout}"
        if not folder.is_dir():
            build_encoder(family, folder, with_head=with_head, dropout=dropout)
        return folder

    return build


def config(model: Path, **settings: object) -> TrainConfig:
    defaults = {"task": "multiple-choice", "out": model / "out", "devices": "cpu", "lora_dropout": 0.0}
    return TrainConfig(model=model, **(defaults | settings))


def as_examples(reader: EncoderReader) -> list[Example]:
    """One-hot labels, but soft ones for the last question."""
    labels = [np.eye(len(question.options))[question.answer] for question in CHOICES[:-1]] + [SOFT]
    prompts = reader.render(CHOICES)
    return [Example(prompt=prompt, labels=shares) for prompt, shares in zip(prompts, labels, strict=True)]


def trained(reader: EncoderReader) -> dict[str, torch.nn.Parameter]:
    return {name: weight for group in reader.parameter_groups() for name, weight in group.parameters.items()}


def gradients(reader: EncoderReader) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in trained(reader).items() if weight.grad is not None}
    reader.module.zero_grad()
    return found


def plain_loss(
    model: torch.nn.Module, folder: Path, examples: list[Example], smoothing: float
) -> torch.Tensor:
    """Each question alone through transformers, the losses summed by torch's cross-entropy."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    losses = []
    for example in examples:
        question = example.prompt.question
        seconds = [f"{question.prompt} {option}" for option in question.options]
        inputs = tokenizer([question.context] * len(seconds), seconds, padding=True, return_tensors="pt")
        logits = model(**{name: values[None] for name, values in inputs.items()}).logits
        labels = torch.from_numpy(example.labels)[None].float()
        losses.append(torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("family", "smoothing"), [("bert", 0.2), ("deberta", 0.0)])
def test_micro_batches_add_up_to_the_plain_batch(
    family: str, smoothing: float, encoder: Callable[..., Path]
) -> None:
    folder = encoder(family)
    model = hf.AutoModelForMultipleChoice.from_pretrained(folder)
    found = {}
    for tokens in (1, 100, 100_000):
        settings = {"full": True, "label_smoothing": smoothing, "micro_batch_tokens": tokens}
        reader = open_encoder_reader(config(folder, **settings))
        examples = as_examples(reader)
        loss = reader.accumulate_gradients(examples, seed=5)
        found[tokens] = gradients(reader)
    expected = plain_loss(model, folder, examples, smoothing)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    plain = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert max(weight.abs().max() for weight in plain.values()) > 1e-2
    for grads in found.values():
        assert set(plain) <= set(grads)
        for name, gradient in grads.items():
            torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-5)


def test_two_calls_add_their_gradients(encoder: Callable[..., Path]) -> None:
    reader = open_encoder_reader(config(encoder(), full=True))
    examples = as_examples(reader)
    for part in (examples[:2], examples[2:]):
        reader.accumulate_gradients(part, seed=0)
    halves = gradients(reader)
    reader.accumulate_gradients(examples, seed=0)
    for name, whole in gradients(reader).items():
        torch.testing.assert_close(halves[name] / 2, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("full", [True, False])
def test_dropout_comes_from_the_seed_and_leaves_torchs_generator(
    full: bool, encoder: Callable[..., Path]
) -> None:
    reader = open_encoder_reader(config(encoder(dropout=0.3), full=full, lora_dropout=0.3))
    examples = as_examples(reader)
    before = torch.get_rng_state()
    losses = []
    for seed in (1, 1, 2):
        losses.append(reader.accumulate_gradients(examples, seed=seed))
        losses.append(sum(float(gradient.abs().sum()) for gradient in gradients(reader).values()))
    assert losses[:2] == losses[2:4]
    assert losses[0] != losses[4]
    assert torch.equal(torch.get_rng_state(), before)
    scores = reader.score(examples)
    np.testing.assert_array_equal(np.concatenate(scores), np.concatenate(reader.score(examples)))


def test_loss_of_scores_is_the_loss_of_a_step(encoder: Callable[..., Path]) -> None:
    reader = open_encoder_reader(config(encoder(), full=True))
    examples = as_examples(reader)
    loss = reader.loss(reader.score(examples), examples)
    assert reader.accumulate_gradients(examples, seed=0) == pytest.approx(loss, abs=1e-6)


def test_prompts_that_hold_only_a_question_are_written_by_the_reader(encoder: Callable[..., Path]) -> None:
    reader = open_encoder_reader(config(encoder(), full=True))
    examples = as_examples(reader)
    bare = [
        Example(prompt=Prompt(question=example.prompt.question, branches=()), labels=example.labels)
        for example in examples
    ]
    mixed = [bare[0], examples[1], bare[2], examples[3]]
    for scores, expected in zip(reader.score(mixed), reader.score(examples), strict=True):
        np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(("family", "full"), [("bert", False), ("deberta", True)])
def test_plain_encoder_gets_a_head_learns_and_is_read_and_scored_by_others(
    family: str, full: bool, encoder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = encoder(family, with_head=False)
    settings = {"full": full, "learning_rate": 3e-3, "head_lr_scale": 0.5, "seed": 3}
    reader = open_encoder_reader(config(folder, **settings))
    again = open_encoder_reader(config(folder, **settings))
    for name, weight in trained(reader).items():
        torch.testing.assert_close(weight, trained(again)[name], rtol=0, atol=0)
    examples = as_examples(reader)
    first = learn(reader, examples, 3e-3)
    assert reader.loss(reader.score(examples), examples) < 0.8 * first
    saved = tmp_path / "saved"
    reader.save(saved)
    if full:
        loaded = hf.AutoModelForMultipleChoice.from_pretrained(saved)
    else:
        base = hf.AutoModelForMultipleChoice.from_pretrained(folder)
        loaded = PeftModel.from_pretrained(base, str(saved))
    expected = plain_loss(loaded.eval(), saved, examples, 0.0).item()
    assert reader.loss(reader.score(examples), examples) == pytest.approx(expected, abs=1e-5)
    run = score_questions(
        ScoreConfig.from_flags(
            model=saved if full else folder,
            adapter=() if full else (saved,),
            questions=write_jsonl(tmp_path / "questions.jsonl", QUESTIONS),
            out=tmp_path / "run",
            devices="cpu",
        )
    )
    for row, scores in zip(run.scores, reader.score(examples), strict=True):
        np.testing.assert_allclose(row.scores, scores, atol=1e-5)


def learn(reader: EncoderReader, examples: list[Example], learning_rate: float, num_steps: int = 30) -> float:
    """Steps of AdamW; returns the loss before them."""
    groups = [
        {"params": list(group.parameters.values()), "lr": learning_rate * group.scale}
        for group in reader.parameter_groups()
    ]
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step in range(num_steps):
        losses.append(reader.accumulate_gradients(examples, seed=step))
        optimizer.step()
        optimizer.zero_grad()
    return losses[0]


@pytest.mark.parametrize(
    ("family", "head"), [("bert", ("pooler", "classifier")), ("deberta", ("pooler", "classifier"))]
)
@pytest.mark.parametrize("full", [True, False])
def test_head_has_its_own_learning_rate(
    family: str, head: tuple[str, ...], full: bool, encoder: Callable[..., Path]
) -> None:
    reader = open_encoder_reader(config(encoder(family), full=full, head_lr_scale=0.25))
    body, choice = reader.parameter_groups()
    assert (body.scale, choice.scale) == (1.0, 0.25)
    assert {part for name in choice.parameters for part in head if f"{part}." in name} == set(head)
    assert not any(part in name for name in body.parameters for part in head)
    assert all("lora_" in name for name in body.parameters) is not full
    num_trained = sum(weight.requires_grad for weight in reader.module.parameters())
    assert num_trained == len(body.parameters) + len(choice.parameters)


def test_training_goes_on_from_an_adapter(encoder: Callable[..., Path], tmp_path: Path) -> None:
    folder = encoder(with_head=False)
    reader = open_encoder_reader(config(folder))
    examples = as_examples(reader)
    learn(reader, examples, 1e-3, num_steps=3)
    reader.save(tmp_path / "first")
    second = open_encoder_reader(config(folder, adapter=tmp_path / "first"))
    for scores, expected in zip(second.score(examples), reader.score(examples), strict=True):
        np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert second.parameter_groups()[1].parameters
    second.save(tmp_path / "second")
    assert (tmp_path / "second" / "adapter_model.safetensors").is_file()


def test_gradient_checkpointing_changes_no_gradient(encoder: Callable[..., Path]) -> None:
    found = []
    for checkpointing in (False, True):
        settings = {"full": True, "gradient_checkpointing": checkpointing}
        reader = open_encoder_reader(config(encoder(dropout=0.2), **settings))
        reader.accumulate_gradients(as_examples(reader), seed=4)
        found.append(gradients(reader))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_targets": ("q_proj",)}, r"--lora-targets: .*'q_proj'; expected dense, key, query, value"),
        ({"dtype": "float16"}, "--dtype float16"),
        ({"base_storage": "nf4"}, "--base-storage nf4"),
        ({"template": "letters"}, "--template"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_do_not_fit_are_refused(
    settings: dict, message: str, encoder: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match=message):
        open_encoder_reader(config(encoder(), **settings))


def test_decoder_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'llama', which has no multiple-choice head"):
        open_encoder_reader(config(checkpoint("llama-gqa"), out=tmp_path))
