"""`strata train --task contrast`, whose head [1, 2 D] `strata score` takes, against transformers and PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file, save_file

from strata.engine.types import InputError
from strata.scripts.cli import main

from ..reference import num_options, read_prompts
from .test_train_end_to_end import PLAIN, QUIET, write_planted

SCORE = "base_model.model.score.weight"


def with_score(adapter: Path, copy: Path, weight: torch.Tensor | None) -> Path:
    """A copy of an adapter with another head, or with none: PEFT knows no head of width 2 D."""
    shutil.copytree(adapter, copy)
    file = copy / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name != SCORE}
    save_file(tensors if weight is None else tensors | {SCORE: weight}, file)
    if weight is None:
        config = json.loads((copy / "adapter_config.json").read_text())
        changed = config | {"modules_to_save": None, "task_type": "CAUSAL_LM"}
        (copy / "adapter_config.json").write_text(json.dumps(changed))
    return copy


@torch.no_grad()
def contrast_scores(model: torch.nn.Module, weight: torch.Tensor, question: dict) -> np.ndarray:
    """w[:D] . r_i + w[D:] . mean of the other r_j, every r from a forward of its branch alone."""
    readouts = {}
    for branch in question["branches"]:
        output = model(input_ids=torch.tensor([branch["ids"]]), output_hidden_states=True, use_cache=False)
        readouts[branch["option"]] = output.hidden_states[-1][0, -1]
    first, second = weight[0].chunk(2)
    scores = []
    for option in range(num_options(question)):
        others = [readout for other, readout in readouts.items() if other != option]
        scores.append(float(first @ readouts[option] + second @ torch.stack(others).mean(dim=0)))
    return np.array(scores)


def test_a_trained_contrast_head_is_scored(checkpoint, tmp_path, score: Callable):
    model, out = checkpoint("llama-gqa"), tmp_path / "run"
    train = write_planted(tmp_path / "train.jsonl", 32, 0)
    held_out = write_planted(tmp_path / "test.jsonl", 6, 1)
    asked = ["train", "--model", str(model), "--questions", str(train), "--out", str(out)]
    assert main([*asked, "--epochs", "1", *PLAIN, *QUIET, "--task", "contrast"]) == 0
    weight = load_file(out / "adapter" / "adapter_model.safetensors")[SCORE]
    run = score(model=model, questions=held_out, adapter=(out / "adapter",))
    base = hf.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, with_score(out / "adapter", tmp_path / "bare", None)).eval()
    assert weight.shape == (1, 2 * base.config.hidden_size)
    expected = {line["id"]: contrast_scores(adapted, weight, line) for line in read_prompts(run.out)}
    for row in run.scores:
        np.testing.assert_allclose(row.scores, expected[row.question.id], rtol=1e-4, atol=1e-4)
    width = base.config.hidden_size
    binary = with_score(out / "adapter", tmp_path / "binary", weight[:, :width].clone())
    with pytest.raises(InputError, match=rf"widths \('binary' of {width}, 'adapter' of {2 * width}\)"):
        score(model=model, questions=held_out, adapter=(out / "adapter", binary))
