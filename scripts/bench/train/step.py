"""One training step on synthetic questions: strata's readers, and transformers + PEFT alone.

Legend: P prefix tokens, L tokens of an option, O options, Q questions of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from strata.engine.types import Branch, Prompt, Question, Target
from strata.scripts.bench.workloads.synthetic_questions import SyntheticQuestion, whole_rows
from strata.training.config import TrainConfig
from strata.training.types import Example, Reader

LORA_R, LORA_ALPHA = 16, 32


def train_settings(checkpoint: Path, folder: Path, dtype: str, device: str, **changes: object) -> TrainConfig:
    """LoRA on all linear layers with a binary head; no dropout, so that runs can be compared."""
    plain = {"lora_r": LORA_R, "lora_alpha": float(LORA_ALPHA), "lora_dropout": 0.0, "task": "binary"}
    settings = plain | {"dtype": dtype, "devices": device} | changes
    return TrainConfig(model=checkpoint, out=folder / "run", questions=folder / "synthetic.csv", **settings)  # type: ignore[arg-type]


def to_examples(questions: Sequence[SyntheticQuestion]) -> list[Example]:
    """The same questions for a reader; the first option is right."""
    return [_to_example(number, question) for number, question in enumerate(questions)]


def _to_example(number: int, question: SyntheticQuestion) -> Example:
    branches = []
    for option, row in enumerate(whole_rows(question)):
        token_ids = row.astype(np.int32)
        target = Target(position=len(token_ids) - 1, token_id=None)
        branches.append(
            Branch(option=option, order=(), label=None, token_ids=token_ids, text="", targets=(target,))
        )
    options = tuple(str(option) for option in range(len(branches)))
    asked = Question(id=str(number), prompt="", options=options, answer=0)
    return Example(prompt=Prompt(question=asked, branches=tuple(branches)), labels=np.eye(len(branches))[0])


def reader_step(reader: Reader, examples: Sequence[Example]) -> float:
    """Gradients of one step, then dropped. Returns the loss."""
    loss = reader.accumulate_gradients(examples, seed=0)
    for group in reader.parameter_groups():
        for parameter in group.parameters.values():
            parameter.grad = None
    return loss


def load_peft_model(
    checkpoint: Path, dtype: torch.dtype, device: torch.device, attention: str = "sdpa"
) -> nn.Module:
    """What a public trainer makes: a sequence classifier with one label, LoRA on all linear layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(
        checkpoint,
        trust_remote_code=False,
        num_labels=1,
        dtype=dtype,
        attn_implementation=attention,
        pad_token_id=0,
    ).to(device)
    settings = LoraConfig(
        task_type="SEQ_CLS", r=LORA_R, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear"
    )
    return get_peft_model(base, settings).eval()


def unpacked_step(model: nn.Module, questions: Sequence[SyntheticQuestion], device: torch.device) -> float:
    """Gradients of one step, the options of a question as one batch [O, P + L], question after question.

    No row is padded. Returns the mean loss over all options.
    """
    num_options = sum(len(question.option_ids) for question in questions)
    total = 0.0
    for question in questions:
        input_ids = torch.from_numpy(np.stack(whole_rows(question))).to(device)
        logits = model(input_ids=input_ids, use_cache=False).logits[:, 0].float()
        labels = torch.zeros_like(logits)
        labels[0] = 1
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / num_options
        loss.backward()
        total += loss.item()
    model.zero_grad()
    return total
