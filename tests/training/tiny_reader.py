"""A reader that needs no checkpoint: logistic regression on the words of an option, and planted questions.

The right option of a planted question holds the word MARKER, and no other option does.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from strata.engine.types import Prompt, Question, RunWarnings
from strata.training.config import TrainConfig
from strata.training.data.training_set import read_training_set
from strata.training.loop.trainer import Trainer
from strata.training.readers.losses import sum_loss
from strata.training.tasks import count_units
from strata.training.types import Example, ParameterGroup

NUM_BUCKETS = 128
MARKER = "marker"
WORDS = [f"word{number}" for number in range(40)]
FILE_NAME = "tiny.safetensors"


class TinyReader:
    """Scores [O] = word counts [O, NUM_BUCKETS] times a weight, plus a bias; --lora-dropout drops words."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.dtype = torch.float32
        generator = torch.Generator().manual_seed(config.seed)
        self.weight = torch.nn.Parameter(0.1 * torch.randn(NUM_BUCKETS, 1, generator=generator))
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def render(self, questions: Sequence[Question]) -> list[Prompt]:
        return [Prompt(question=question, branches=()) for question in questions]

    def accumulate_gradients(self, batch: Sequence[Example], *, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        scores = [self.score_counts(self.drop(self.counts(example), generator)) for example in batch]
        summed = sum_loss(self.config.task, scores, batch, self.config.label_smoothing)
        loss = summed / count_units(self.config.task, batch)
        loss.backward()
        return loss.item()

    def score(self, examples: Sequence[Example]) -> list[np.ndarray]:
        with torch.no_grad():
            scores = [self.score_counts(self.counts(example)) for example in examples]
        return [scores_O.double().numpy() for scores_O in scores]

    def loss(self, scores: Sequence[np.ndarray], examples: Sequence[Example]) -> float:
        found = [torch.from_numpy(scores_O) for scores_O in scores]
        return float(sum_loss(self.config.task, found, examples)) / count_units(self.config.task, examples)

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup(parameters={"weight": self.weight}, scale=1.0),
            ParameterGroup(parameters={"bias": self.bias}, scale=self.config.head_lr_scale),
        ]

    def save(self, folder: Path) -> None:
        save_file({"weight": self.weight.detach(), "bias": self.bias.detach()}, folder / FILE_NAME)

    def counts(self, example: Example) -> torch.Tensor:
        """Word counts [O, NUM_BUCKETS] of the options."""
        options = example.prompt.question.options
        counts = torch.zeros(len(options), NUM_BUCKETS)
        for row, option in enumerate(options):
            for word in option.split():
                counts[row, zlib.crc32(word.encode()) % NUM_BUCKETS] += 1
        return counts

    def drop(self, counts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return counts * (torch.rand(counts.shape, generator=generator) >= self.config.lora_dropout)

    def score_counts(self, counts: torch.Tensor) -> torch.Tensor:
        return (counts @ self.weight + self.bias)[:, 0]


def planted_questions(num_questions: int, *, seed: int = 0, prefix: str = "q") -> list[dict]:
    """Rows of a JSONL question file, of two to five options of random words."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_questions):
        num_options = int(rng.integers(2, 6))
        answer = int(rng.integers(num_options))
        texts = [list(rng.choice(WORDS, size=rng.integers(2, 7))) for _ in range(num_options)]
        texts[answer].insert(int(rng.integers(len(texts[answer]) + 1)), MARKER)
        options = [" ".join(words) for words in texts]
        rows.append({"id": f"{prefix}{number}", "question": "Which?", "options": options, "answer": answer})
    return rows


def write_rows(path: Path, rows: Sequence[dict]) -> Path:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_config(folder: Path, **changes: object) -> TrainConfig:
    """A run of TinyReader on folder/train.jsonl (40 planted questions, made if absent) into folder/out."""
    questions = folder / "train.jsonl"
    if not questions.exists():
        write_rows(questions, planted_questions(40))
    plain = {"model": folder, "out": folder / "out", "questions": questions, "devices": "cpu"}
    plain |= {"learning_rate": 0.05, "batch_questions": 8, "epochs": 2.0, "tensorboard": "no"}
    plain |= {"eval_first": False}
    return TrainConfig(**(plain | changes))


def train_tiny(config: TrainConfig, reader: TinyReader | None = None) -> Trainer:
    """Trains to the end, as one process."""
    reader = TinyReader(config) if reader is None else reader
    trainer = Trainer(config, reader, read_training_set(config, RunWarnings()))
    trainer.start()
    trainer.run()
    return trainer


def read_log(out: Path) -> list[dict]:
    """The lines of log.jsonl."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What `TinyReader.save` wrote."""
    return load_file(folder / FILE_NAME)
