"""Makes what `compare_checkouts.py` scores, from fixed seeds: adapters, tiny models, a question file.

All is made once and given to both checkouts, so nothing here has to come out the same on two machines. Knows
nothing of the engine. Imports torch, transformers and peft where they are used: --help stays quick.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 384
RANK = 4
PASSAGES_PER_CONTEXT = 6
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 32,
}
STORIES_ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"seed": 1},
    "dora": {"seed": 2, "use_dora": True},
    "binary": {"seed": 3, "with_score": True},
}
"""Adapters of stories260k by name, with `make_adapter`'s arguments."""


def gather_inputs(demo: Path, shared: Path, made: Path, wanted: set[str]) -> dict[str, Path]:
    """Paths of the wanted models, adapters and question files by name; those that cannot be had are absent.

    Args:
        demo: scripts/demo_data of a checkout.
        shared: holds models/stories260k and data/kaggle200.csv, or does not.
        made: new folder for what has to be made.
        wanted: names that some case uses.
    """
    stories = shared / "models" / "stories260k"
    found = {"demo": demo / "model", "demo-adapter": demo / "adapter", "demo.csv": demo / "questions.csv"}
    found |= {"stories260k": stories, "kaggle200.csv": shared / "data" / "kaggle200.csv"}
    makers: dict[str, Callable[[Path], None]] = {"contexts.csv": partial(add_contexts, demo)}
    if stories.is_dir():
        makers |= {name: partial(make_adapter, stories, **how) for name, how in STORIES_ADAPTERS.items()}
        makers["stories-contrast"] = partial(add_contrast_head, stories)
    makers |= {family: partial(make_encoder, demo, family) for family in ("bert", "deberta")}
    for seed in (1, 2):
        makers[f"bert-adapter-{seed}"] = partial(make_encoder_adapter, made / "bert", seed)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    made.mkdir()
    for name, make in makers.items():
        if name in wanted:
            make(made / name)
            found[name] = made / name
    return {name: path for name, path in found.items() if name in wanted and path.exists()}


def add_contexts(demo: Path, path: Path) -> None:
    """Write the demo's questions with passages for contexts, most of them too long for a tiny encoder."""
    passages = read_passages(demo)
    with (demo / "questions.csv").open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    for number, row in enumerate(rows):
        start = number % (len(passages) - PASSAGES_PER_CONTEXT)
        # Of growing length, so that some contexts stay whole and some questions have none.
        row["context"] = " ".join(passages[start : start + number % (PASSAGES_PER_CONTEXT + 1)])
    with path.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_passages(demo: Path) -> list[str]:
    """The texts of the demo's passages."""
    with (demo / "passages.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def make_adapter(
    model: Path, folder: Path, *, seed: int, use_dora: bool = False, with_score: bool = False
) -> None:
    """Save a random LoRA adapter of all linear layers as PEFT lays it out.

    Args:
        model: checkpoint in one safetensors file, whose shapes the adapter fits.
        folder: where the adapter goes.
        seed: of its weights.
        use_dora: whether it has magnitudes, too.
        with_score: whether it brings a score head.
    """
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    weights = load_file(model / "model.safetensors")
    linears = sorted(name.removesuffix(".weight") for name in weights if name.endswith("_proj.weight"))
    tensors: dict[str, torch.Tensor] = {}
    for name in linears:
        tensors |= lora_of(f"base_model.model.{name}", weights[f"{name}.weight"].float(), use_dora, generator)
    if with_score:
        size = read_json(model / "config.json")["hidden_size"]
        tensors["base_model.model.score.weight"] = 0.3 * torch.randn(1, size, generator=generator)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if with_score else "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted({name.rpartition(".")[2] for name in linears}),
        "use_dora": use_dora,
        "modules_to_save": ["score"] if with_score else None,
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))


def lora_of(
    module: str, weight: torch.Tensor, use_dora: bool, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The tensors of one linear layer, large enough to move every score."""
    import torch

    num_outputs, num_inputs = weight.shape
    tensors = {
        f"{module}.lora_A.weight": 0.2 * torch.randn(RANK, num_inputs, generator=generator),
        f"{module}.lora_B.weight": 0.2 * torch.randn(num_outputs, RANK, generator=generator),
    }
    if use_dora:
        noise = 0.1 * torch.randn(num_outputs, generator=generator)
        tensors[f"{module}.lora_magnitude_vector"] = weight.norm(dim=1) * (1 + noise)
    return tensors


def add_contrast_head(model: Path, folder: Path) -> None:
    """Save a copy of a model with a random contrast head: its `score` also reads the other options' mean."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for path in model.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    config = read_json(model / "config.json")
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    weights["score.weight"] = 0.3 * torch.randn(1, 2 * config["hidden_size"], generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_encoder(demo: Path, family: str, folder: Path) -> None:
    """Save a random float32 encoder with a multiple-choice head, and its tokenizer."""
    import torch
    import transformers as hf

    hf.utils.logging.disable_progress_bar()
    config = hf.BertConfig(**SHAPE) if family == "bert" else hf.DebertaV2Config(**SHAPE, **DEBERTA)
    model = hf.AutoModelForMultipleChoice.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if "LayerNorm.weight" in name else 0.2 * noise)
    model.save_pretrained(folder)
    train_tokenizer(read_passages(demo)).save_pretrained(folder)


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer that writes [CLS] a [SEP] b [SEP]."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["[PAD]", "[CLS]", "[SEP]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(texts, 100), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def make_encoder_adapter(encoder: Path, seed: int, folder: Path) -> None:
    """Save a LoRA adapter of an encoder with PEFT; it brings a choice head of its own."""
    import torch
    import transformers as hf
    from peft import LoraConfig, get_peft_model

    model = hf.AutoModelForMultipleChoice.from_pretrained(encoder)
    settings = LoraConfig(r=RANK, target_modules=["query", "value"], modules_to_save=["classifier"])
    adapted = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(adapted.named_parameters()):
            if weight.requires_grad:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    adapted.save_pretrained(str(folder))
