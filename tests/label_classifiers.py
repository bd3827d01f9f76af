"""Owns tiny classifiers of several labels, the texts they read, and transformers' own logits of those."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from .families import CONFIGS, build_tokenizer, randomize_weights

LABELS = ("sea", "river", "hill top", "7", "moon")
TEXTS = [
    {"id": "a", "text": "The river carries sand from the hills to the sea.", "label": "river"},
    {"id": "b", "text": "Warm water rises,", "label": 4},
    {"id": "c", "text": "The river carries sand, and the moon pulls on the ocean.", "label": "7"},
    {"id": "d", "text": "A bee finds the field again by the light of the sky.", "label": None},
]
PAIRS = [
    {"id": "a", "text_a": "Which metals?", "text_b": "Copper, iron and tin were melted."},
    {"id": "b", "text_a": "Which metals?", "text_b": ""},
    {"id": "c", "text_a": "Which metals were melted together?", "text_b": "tin"},
]


def build_label_classifier(
    family: str, folder: Path, *, bias: bool, pad_token_id: int | None = 0, seed: int = 0
) -> Path:
    """Saves a random float32 classifier of LABELS, with a bias (unknown to transformers) or without."""
    config = CONFIGS[family]()
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {name: index for index, name in enumerate(LABELS)}
    config.pad_token_id = pad_token_id
    model = hf.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    randomize_weights(model, seed)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    if bias:
        tensors = load_file(folder / "model.safetensors")
        tensors["score.bias"] = torch.randn(len(LABELS), generator=torch.Generator().manual_seed(seed))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load_classifier(folder: Path, adapter: Path | None = None, **settings) -> torch.nn.Module:
    """The model as transformers and PEFT load it; a stored bias is put into the head by hand."""
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **settings
    )
    tensors = load_file(folder / "model.safetensors")
    if "score.bias" in tensors:
        model.score.bias = torch.nn.Parameter(tensors["score.bias"])
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def train_by_chance(folder: Path, out: Path, *, seed: int, num_labels: int | None = None) -> Path:
    """Saves a PEFT adapter with a classifier, every trained tensor moved at random."""
    model = load_classifier(folder, **({} if num_labels is None else {"num_labels": num_labels}))
    settings = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "down_proj"])
    peft_model = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(seed)
    for weight in peft_model.parameters():
        if weight.requires_grad:
            weight.data.add_(0.2 * torch.randn(weight.shape, generator=generator))
    peft_model.save_pretrained(out)
    return out


def rename_head(adapter: Path, head: str) -> None:
    """Calls the classifier in an adapter's file by another name."""
    file = adapter / "adapter_model.safetensors"
    tensors = {name.replace(".score.", f".{head}."): weight for name, weight in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": [head]}))


@torch.no_grad()
def expected_logits(model: torch.nn.Module, folder: Path, rows: list[dict], **cut) -> list[torch.Tensor]:
    """Logits [L] of each row alone, tokenized as transformers does by itself."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        # Lists: an empty second text is one only in a batch, which is how a data set is tokenized.
        texts = [[row["text"]]] if "text" in row else [[row["text_a"]], [row["text_b"]]]
        found.append(model(**tokenizer(*texts, return_tensors="pt", **cut)).logits[0])
    return found
