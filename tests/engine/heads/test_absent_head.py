"""A classifier head that is declared and is not in the file: refused, unless another one is named."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from strata.engine.types import InputError


def drop_score(file, **metadata):
    kept = {name: tensor for name, tensor in load_file(file).items() if "score" not in name}
    save_file(kept, file, metadata=metadata)


@pytest.fixture
def headless(checkpoint, tmp_path):
    """A SequenceClassification checkpoint whose score is gone."""
    folder = shutil.copytree(checkpoint("llama-tied", "classifier"), tmp_path / "headless")
    drop_score(folder / "model.safetensors", format="pt")
    return folder


@pytest.fixture
def headless_adapter(checkpoint, tmp_path):
    """What PEFT saves of a SEQ_CLS adapter, without its score."""
    model = hf.AutoModelForSequenceClassification.from_pretrained(checkpoint("llama-gqa"), num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    drop_score(tmp_path / "adapter" / "adapter_model.safetensors")
    return tmp_path / "adapter"


def test_seqcls_without_score(headless, score):
    with pytest.raises(
        InputError, match=r"config.json \(Llama.*\) declares a trained head.*score.weight"
    ) as refused:
        score(model=headless)
    assert "\n" not in str(refused.value)
    assert score(model=headless, head="loglik").scores


@pytest.mark.parametrize("declares", ["task_type", "modules_to_save"])
def test_lora_seqcls_score_missing(declares, checkpoint, headless_adapter, score):
    file = headless_adapter / "adapter_config.json"
    settings = json.loads(file.read_text())
    declared = {"task_type": ("SEQ_CLS", None), "modules_to_save": (None, ["score"])}[declares]
    settings |= dict(zip(("task_type", "modules_to_save"), declared, strict=True))
    file.write_text(json.dumps(settings))
    model = checkpoint("llama-gqa")
    with pytest.raises(InputError, match=r"adapter_config.json declares a trained head.*score.weight"):
        score(model=model, adapter=(headless_adapter,))
    assert score(model=model, adapter=(headless_adapter,), head="loglik").scores


def test_the_head_of_a_base_model_serves_an_adapter_without_one(checkpoint, headless_adapter, score):
    assert score(model=checkpoint("llama-gqa", "classifier"), adapter=(headless_adapter,)).scores
