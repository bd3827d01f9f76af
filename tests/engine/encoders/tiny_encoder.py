"""Owns the tiny random encoders the tests score and train, and their tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ...families import TOKENIZER_TEXT

VOCABULARY_SIZE = 384
SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 32,
}
CONFIGS = {
    "bert": lambda: hf.BertConfig(**SHAPE),
    "deberta": lambda: hf.DebertaV2Config(**SHAPE, **DEBERTA),
    # Positions are counted from the padding's on: two of the 64 are never used.
    "roberta": lambda: hf.RobertaConfig(**{**SHAPE, "pad_token_id": 1, "type_vocab_size": 1}),
}
LONG = " The river carries sand from the hills to the sea." * 12
"""A context beyond every tiny encoder's window."""


def build_tokenizer(pad_id: int = 0) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 384 tokens that knows any text and writes [CLS] a [SEP] b [SEP]."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]"] if pad_id == 0 else ["[CLS]", "[PAD]", "[SEP]"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, special.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def build_encoder(family: str, folder: Path, *, with_head: bool = True, dropout: float = 0.1) -> Path:
    """Save a random float32 encoder and its tokenizer in `folder`; without its head, a plain one."""
    config = CONFIGS[family]()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    kind = hf.AutoModelForMultipleChoice if with_head else hf.AutoModel
    model = kind.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if "LayerNorm.weight" in name else 0.2 * noise)
    model.save_pretrained(folder)
    build_tokenizer(config.pad_token_id).save_pretrained(folder)
    return folder
