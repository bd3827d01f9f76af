"""Tiny random rerankers, saved as sentence-transformers or as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf

from ...engine.encoders import tiny_encoder
from ...families import CONFIGS, build_causal_lm, build_tokenizer, randomize_weights

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}Is it of help? Answer yes or no:"
)
MODULES = (
    ("", "base.modules.transformer.Transformer"),
    ("1_LogitScore", "cross_encoder.modules.logit_score.LogitScore"),
)


def build_decoder(folder: Path, num_labels: int) -> Path:
    """A Llama with a sequence-classification head."""
    config = CONFIGS["llama-gqa"]()
    config.num_labels, config.pad_token_id = num_labels, 0
    model = hf.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    randomize_weights(model)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def build_encoder(folder: Path, num_labels: int) -> Path:
    """A BERT with a sequence-classification head."""
    config = hf.BertConfig(**tiny_encoder.SHAPE, num_labels=num_labels)
    model = hf.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if "LayerNorm.weight" in name else 0.2 * noise)
    model.save_pretrained(folder)
    tiny_encoder.build_tokenizer().save_pretrained(folder)
    return folder


def build_causal(folder: Path, *, chat: bool = False, no_token: int | None = 60, **settings: object) -> Path:
    """A Llama that is asked for the tokens 50 (yes) and 60 (no), in the layout of sentence-transformers 6."""
    build_causal_lm("llama-gqa", folder)
    if chat:
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.{kind}"}
        for place, (path, kind) in enumerate(MODULES)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_LogitScore").mkdir()
    tokens = {"true_token_id": 50, "false_token_id": no_token, "module_input_name": "causal_logits"}
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(tokens))
    modality = {"method": "forward", "method_output_name": "logits"}
    modalities = {"text": modality} | ({"message": {**modality, "format": "flat"}} if chat else {})
    transformer = {
        "transformer_task": "text-generation",
        "modality_config": modalities,
        "module_output_name": "causal_logits",
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    whole = {"model_type": "CrossEncoder", "prompts": {}, "activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(whole | settings))
    return folder
