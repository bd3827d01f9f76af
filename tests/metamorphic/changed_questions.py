"""Owns the questions of the metamorphic tests, and changes of a question file that no score may notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import torch
import transformers as hf

from ..sample_questions import QUESTIONS, write_jsonl

MORE = [
    {
        "id": f"more-{number}",
        "question": f"Which of the {number} statements is true?",
        "options": ["copper sinks", "warm water rises", "the sun pulls on the sea"][: 2 + number % 2],
        "answer": 0,
        "context": "Warm water rises, cold water sinks below it. " * (number % 4),
    }
    for number in range(5)
]
ROWS = [*QUESTIONS, *MORE]

Rows = list[dict]
Scores = dict[str, np.ndarray]
Score = Callable[..., object]


def scores_of(score: Score, folder: Path, rows: Rows, **settings: object) -> Scores:
    """Scores by question id."""
    file = write_jsonl(folder / "rows.jsonl", rows)
    return {row.question.id: row.scores for row in score(questions=file, **settings).scores}


def permuted(score: Score, folder: Path, **settings: object) -> Scores:
    """The questions in another order."""
    order = np.random.default_rng(3).permutation(len(ROWS))
    return scores_of(score, folder, [ROWS[index] for index in order], **settings)


def split(score: Score, folder: Path, **settings: object) -> Scores:
    """The file cut in two, scored by two runs."""
    first = scores_of(score, folder, ROWS[:3], **settings)
    return first | scores_of(score, folder, ROWS[3:], **settings)


def alone(score: Score, folder: Path, **settings: object) -> Scores:
    """One question a run."""
    found: Scores = {}
    for row in ROWS[:4]:
        found |= scores_of(score, folder, [row], **settings)
    return found


def doubled(score: Score, folder: Path, **settings: object) -> Scores:
    """Every question once more, under another id: both get the same."""
    again = [row | {"id": f"again {row['id']}"} for row in ROWS]
    found = scores_of(score, folder, [*again, *ROWS], **settings)
    for row in ROWS:
        np.testing.assert_array_equal(found[row["id"]], found.pop(f"again {row['id']}"))
    return found


def renamed(score: Score, folder: Path, **settings: object) -> Scores:
    """Other ids."""
    names = {f"{len(ROWS) - number}": row["id"] for number, row in enumerate(ROWS)}
    rows = [row | {"id": name} for name, row in zip(names, ROWS, strict=True)]
    found = scores_of(score, folder, rows, **settings)
    return {names[name]: scores for name, scores in found.items()}


def without_answers(score: Score, folder: Path, **settings: object) -> Scores:
    """The right answers left out, or others in their place."""
    rows = [{name: value for name, value in row.items() if name != "answer"} for row in ROWS]
    return scores_of(score, folder, rows, **settings)


def with_a_twin_option(score: Score, folder: Path, **settings: object) -> Scores:
    """The first option once more at the end: both get the same, the others what they had."""
    rows = [row | {"options": [*row["options"], row["options"][0]]} for row in ROWS]
    found = scores_of(score, folder, rows, **settings)
    for scores in found.values():
        np.testing.assert_array_equal(scores[0], scores[-1])
    return {name: scores[:-1] for name, scores in found.items()}


CHANGES = (permuted, split, alone, doubled, renamed, without_answers, with_a_twin_option)


def make_adapter(model: Path, folder: Path, seed: int) -> Path:
    """A random LoRA of a causal language model."""
    torch.manual_seed(seed)
    base = hf.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    modules = ["q_proj", "v_proj", "o_proj", "down_proj"]
    config = peft.LoraConfig(
        target_modules=modules, task_type="CAUSAL_LM", r=4, lora_alpha=8, init_lora_weights=False
    )
    peft.get_peft_model(base, config).save_pretrained(folder)
    return folder
