"""Gradients of the packed forward against transformers + PEFT on every branch alone; streamed against it.

The oracle loads what `reader.save` wrote through plain PEFT, runs each branch by itself, and takes its loss
from torch's functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from peft import PeftModel

from strata.engine.questions.question_file import read_questions
from strata.engine.types import Branch, Prompt, Question, RunWarnings, Target
from strata.training.config import TrainConfig
from strata.training.readers.packed_batch import split_examples
from strata.training.readers.resident_reader import open_resident_reader
from strata.training.readers.streamed_reader import StreamedReader, open_streamed_reader
from strata.training.tasks import trains_classifier
from strata.training.types import Example, Reader

from ...families import FAMILIES

TOLERANCE = 1e-5
STREAMED = ("llama-gqa", "llama-tied", "gemma3", "phi3", "mixtral")
"""Grouped and tied heads, windows, joint projections, experts; every family's resident ones are checked."""
MANY_TASKS = ("binary", "contrast", "choice", "letters", "lm")


def settings(model: Path, out: Path, task: str = "binary", **changes: object) -> TrainConfig:
    plain = {"lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0, "dtype": "float32", "devices": "cpu"}
    return TrainConfig(
        model=model, out=out, task=task, questions=Path("questions.jsonl"), **(plain | changes)
    )


def close(reader: Reader) -> None:
    if isinstance(reader, StreamedReader):
        reader.close()


def randomize(reader: Reader, seed: int = 0) -> None:
    """Every trained number away from where it starts: LoRA's B from 0 above all."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in reader.parameter_groups():
            for _, parameter in sorted(group.parameters.items()):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def make_examples(reader: Reader, path: Path, task: str) -> list[Example]:
    questions = read_questions(path, warnings=RunWarnings())
    if task == "lm":
        return [passage_example(reader, question) for question in questions if question.context]
    rng = np.random.default_rng(0)
    return [
        Example(prompt=prompt, labels=rng.dirichlet(np.ones(len(prompt.question.options))))
        for prompt in reader.render(questions)
    ]


def passage_example(reader: Reader, question: Question) -> Example:
    ids = np.asarray(reader.tokenizer(question.context)["input_ids"], np.int32)
    targets = tuple(Target(position=place, token_id=int(ids[place])) for place in range(1, len(ids)))
    branch = Branch(
        option=0, order=(), label=None, token_ids=ids[:-1], text=question.context, targets=targets
    )
    return Example(prompt=Prompt(question=question, branches=(branch,)), labels=np.ones(1))


def gradients(reader: Reader) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad
        for group in reader.parameter_groups()
        for name, parameter in group.parameters.items()
    }


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in expected.items():
        scale = gradient.norm()
        assert scale > 0, f"{name}: a gradient of nothing shows nothing"
        assert (found[name] - gradient).norm() <= TOLERANCE * scale, name


class Oracle:
    """Plain PEFT over plain transformers, a branch at a time."""

    def __init__(self, model: Path, adapter: Path, task: str) -> None:
        self.task = task
        classifies = trains_classifier(task)
        kind = hf.AutoModelForSequenceClassification if classifies else hf.AutoModelForCausalLM
        options = {"num_labels": 1} if classifies else {}
        base = kind.from_pretrained(model, dtype=torch.float32, attn_implementation="eager", **options)
        if task == "contrast":
            base.score = torch.nn.Linear(2 * base.config.hidden_size, 1, bias=False)
        self.model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).eval()

    def loss(self, examples: Sequence[Example], smoothing: float) -> torch.Tensor:
        if self.task == "lm":
            log_probabilities = [self.log_probabilities(example.prompt.branches[0]) for example in examples]
            return -torch.cat(log_probabilities).mean()
        scores = [self.scores(example) for example in examples]
        labels = [
            torch.from_numpy((1 - smoothing) * example.labels + smoothing / len(example.labels)).float()
            for example in examples
        ]
        if self.task in ("binary", "contrast"):
            return F.binary_cross_entropy_with_logits(torch.cat(scores), torch.cat(labels))
        losses = [F.cross_entropy(s[None], label[None]) for s, label in zip(scores, labels, strict=True)]
        return torch.stack(losses).mean()

    def scores(self, example: Example) -> torch.Tensor:
        branches = example.prompt.branches
        if self.task == "letters":
            return torch.stack([self.log_probabilities(branch).sum() for branch in branches])
        if self.task == "binary":
            logits = [
                self.model(input_ids=ids_of(branch), use_cache=False).logits[0, 0] for branch in branches
            ]
            return torch.stack(logits)
        base = self.model.base_model.model
        states = [base.model(input_ids=ids_of(branch)).last_hidden_state[0, -1] for branch in branches]
        if self.task == "choice":
            return torch.stack([base.score(state)[0] for state in states])
        mean_of_others = [
            torch.stack([other for other in states if other is not state]).mean(dim=0) for state in states
        ]
        pairs = zip(states, mean_of_others, strict=True)
        return torch.stack([base.score(torch.cat(pair))[0] for pair in pairs])

    def log_probabilities(self, branch: Branch) -> torch.Tensor:
        logits = self.model(input_ids=ids_of(branch), use_cache=False).logits[0].log_softmax(dim=-1)
        return torch.stack([logits[target.readout_position, target.token_id] for target in branch.targets])

    def gradients(self) -> dict[str, torch.Tensor]:
        return {
            name: parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }


def ids_of(branch: Branch) -> torch.Tensor:
    return torch.from_numpy(branch.token_ids.astype(np.int64))[None]


def check_against_oracle(model: Path, questions: Path, out: Path, task: str) -> None:
    config = settings(model, out, task, label_smoothing=0.1)
    reader = open_resident_reader(config)
    randomize(reader)
    examples = make_examples(reader, questions, task)
    reader.save(out / "adapter")
    loss = reader.accumulate_gradients(examples, seed=0)
    oracle = Oracle(model, out / "adapter", task)
    expected = oracle.loss(examples, 0.1)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=TOLERANCE)
    assert_same_gradients(gradients(reader), oracle.gradients())


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_gradients_equal_those_of_every_branch_alone(family, checkpoint, questions, tmp_path):
    check_against_oracle(checkpoint(family), questions, tmp_path, "choice")


@pytest.mark.parametrize("task", MANY_TASKS)
def test_packed_gradients_of_every_task(task, checkpoint, questions, tmp_path):
    check_against_oracle(checkpoint("llama-gqa"), questions, tmp_path, task)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in STREAMED else pytest.mark.slow, id=family)
        for family in FAMILIES
    ],
)
def test_streamed_gradients_equal_resident_ones(family, checkpoint, questions, tmp_path):
    check_streamed(settings(checkpoint(family), tmp_path, "binary"), questions)


@pytest.mark.parametrize(("task", "boundary_store"), [("letters", "disk"), ("lm", "ram")])
def test_streamed_gradients_with_dropout_and_micro_batches(
    task, boundary_store, checkpoint, questions, tmp_path
):
    """The same seed draws the same dropout in both, in the layer that is computed again as well."""
    changes = {"lora_dropout": 0.3, "micro_batch_tokens": 60, "boundary_store": boundary_store}
    check_streamed(settings(checkpoint("llama-gqa"), tmp_path, task, **changes), questions, least_parts=2)


def check_streamed(config: TrainConfig, questions: Path, least_parts: int = 1) -> None:
    found, losses, scores = [], [], []
    for open_reader in (open_resident_reader, open_streamed_reader):
        reader = open_reader(config)
        randomize(reader)
        examples = make_examples(reader, questions, config.task)
        assert len(split_examples(examples, config.micro_batch_tokens or 4096)) >= least_parts
        losses.append(reader.accumulate_gradients(examples, seed=3))
        found.append(gradients(reader))
        scores.append(np.concatenate(reader.score(examples)))
        close(reader)
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE)
    assert_same_gradients(found[1], found[0])
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)


def test_both_begin_from_the_same_numbers(checkpoint, tmp_path):
    config = settings(checkpoint("llama-gqa"), tmp_path, lora_dropout=0.1)
    readers: list[Reader] = [open_resident_reader(config), open_streamed_reader(config)]
    first, second = (
        {name: weight for group in reader.parameter_groups() for name, weight in group.parameters.items()}
        for reader in readers
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    close(readers[1])


def test_dropout_repeats_with_the_seed_and_changes_without(checkpoint, questions, tmp_path):
    reader = open_resident_reader(settings(checkpoint("llama-gqa"), tmp_path, lora_dropout=0.3))
    randomize(reader)
    examples = make_examples(reader, questions, "binary")
    losses = [reader.accumulate_gradients(examples, seed=seed) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("task", ["binary", "letters"])
def test_micro_batches_and_checkpointing_change_nothing(task, checkpoint, questions, tmp_path):
    changes: list[dict[str, object]] = [
        {},
        {"micro_batch_tokens": 60},
        {"gradient_checkpointing": True},
    ]
    found = []
    for change in changes:
        reader = open_resident_reader(settings(checkpoint("llama-gqa"), tmp_path, task, **change))
        randomize(reader)
        reader.accumulate_gradients(make_examples(reader, questions, task), seed=0)
        found.append(gradients(reader))
    assert_same_gradients(found[1], found[0])
    assert_same_gradients(found[2], found[0])


def test_streaming_reads_each_layer_twice_but_the_last_once(checkpoint, questions, tmp_path):
    reader = open_streamed_reader(settings(checkpoint("llama-gqa"), tmp_path))
    examples = make_examples(reader, questions, "binary")
    reader.accumulate_gradients(examples, seed=0)
    before = reader.tensor_reader.num_bytes_read
    reader.accumulate_gradients(examples, seed=0)
    sizes = [reader.layer_bytes(layer) for layer in range(reader.checkpoint.num_layers)]
    embedding = reader.tensor_reader.num_bytes_read - before - 2 * sum(sizes) + sizes[-1]
    used = {
        token
        for example in examples
        for branch in example.prompt.branches
        for token in branch.token_ids.tolist()
    }
    assert embedding == len(used) * reader.checkpoint.config.hidden_size * 4
    close(reader)


def test_trained_adapter_scores_alike_in_strata_score(checkpoint, questions, tmp_path, score: Callable):
    model = checkpoint("llama-gqa")
    reader = open_resident_reader(settings(model, tmp_path))
    randomize(reader)
    examples = make_examples(reader, questions, "binary")
    reader.save(tmp_path / "adapter")
    run = score(model=model, adapter=(tmp_path / "adapter",))
    for mine, row in zip(reader.score(examples), run.scores, strict=True):
        np.testing.assert_allclose(mine, row.scores, atol=1e-4)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
