"""Makes the untrained checkpoint that the demo's training starts from: a tokenizer and a small Llama.

A model this small, trained for minutes, learns to read only if its attention begins near what reading needs,
so its weights are drawn with structure: query = key in the slowly turning rotary dimensions, so that equal
tokens match; a few heads of the first layers look at the tokens just before; values come out as they went in.
Source of the idea: Trockman and Kolter 2023, Mimetic Initialization of Self-Attention Layers.

Legend: V vocabulary, D model dim, N heads, H head dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from strata.training.demo_corpus.build import context_of, write_passages
from strata.training.demo_corpus.entities import load_entities, load_kinds
from strata.training.demo_corpus.invented import invent_scenes, make_inventor
from strata.training.demo_corpus.splits import split_entities

NUM_SCENES = 3000
"""Invented scenes whose text the tokenizer learns from."""
NUM_WORDINGS = 3
"""How often each training passage is worded anew for the tokenizer."""
MATCH_STD, FAST_STD, LOCAL_STD = 0.13, 0.05, 0.02
CONSTANT = 3.0
LOCAL_QUERY = 1.4
LOCAL_PAIRS: Mapping[int, tuple[tuple[int, ...], ...]] = {0: ((0, 1, 2), (2, 3)), 1: ((2, 3),)}
"""For a layer its local heads, and for each the rotary pairs whose agreement makes near tokens loud."""
COPY_GAIN = 0.21


@dataclass(frozen=True, kw_only=True)
class FirstModelConfig:
    """What to make; the same settings give the same bytes."""

    out: Path
    """Folder for the checkpoint."""
    seed: int = 0
    """Of the corpus's split and wording, and of the weights."""
    vocab_size: int = 6000
    """Most tokens."""
    hidden_size: int = 128
    """D."""
    num_layers: int = 4
    """Layers."""
    num_heads: int = 4
    """N; H is D / N."""
    intermediate_size: int = 256
    """Of the MLP."""


def make_first_model(config: FirstModelConfig) -> Path:
    """Writes config.json, model.safetensors (float32) and the tokenizer. Returns the folder."""
    tokenizer = train_tokenizer(tokenizer_texts(config.seed), config.vocab_size)
    tokenizer.save_pretrained(str(config.out))
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    )
    model = LlamaForCausalLM(settings)
    draw_weights(model, torch.Generator().manual_seed(config.seed))
    model.save_pretrained(str(config.out))
    return config.out


def tokenizer_texts(seed: int) -> list[str]:
    """Text of the training split and of invented scenes; nothing of what is held out."""
    kinds = load_kinds()
    entities = split_entities(load_entities(kinds), seed)["train"]
    texts = [
        f"{page['title']}\n{page['text']}"
        for wording in range(NUM_WORDINGS)
        for page in write_passages(entities, kinds, seed + wording)
    ]
    scenes = islice(invent_scenes(make_inventor(kinds, entities), seed + 2), NUM_SCENES)
    invented = [
        f"{context_of(scene)} " + " ".join(f"{q.prompt} {' '.join(q.options)}" for q in scene.questions)
        for scene in scenes
    ]
    # The real texts count more: every name and value should be few tokens.
    return texts * NUM_WORDINGS + invented


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of lower-case words without their spaces: a name has the same tokens everywhere."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    words = Regex(r"\n+|\w+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, behavior="removed", invert=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<unk>"],
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def draw_weights(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    """Draws all weights of a model anew, in place."""
    width = model.config.hidden_size
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        table.normal_(std=1 / math.sqrt(width), generator=generator)
        # A dimension that is the same for all tokens is what local heads compare: content must not matter.
        table[:, 0] = CONSTANT / math.sqrt(width)
        for number, layer in enumerate(model.model.layers):
            _draw_matching(layer.self_attn, model.config, generator)
            _draw_local(layer.self_attn, model.config, LOCAL_PAIRS.get(number, ()), generator)
            _draw_copying(layer.self_attn, model.config, generator)
            for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
                matrix.weight.normal_(std=1 / math.sqrt(width), generator=generator)
            std = 0.5 / math.sqrt(model.config.intermediate_size)
            layer.mlp.down_proj.weight.normal_(std=std, generator=generator)


def _draw_matching(attention: nn.Module, config: LlamaConfig, generator: torch.Generator) -> None:
    """Query = key where the rotary angle hardly turns, so that equal tokens attend to each other."""
    query, key = _by_head(attention, "q_proj", config), _by_head(attention, "k_proj", config)
    shared = torch.randn(query.shape, generator=generator) * MATCH_STD
    head_dim = query.shape[1]
    half = head_dim // 2
    fast = [index for index in range(head_dim) if index % half < half // 2]
    for matrix in (query, key):
        matrix.copy_(shared)
        fast_rows = torch.randn(query.shape[0], len(fast), query.shape[2], generator=generator)
        matrix[:, fast] = fast_rows * FAST_STD
        matrix[:, :, 0] = 0


def _draw_local(
    attention: nn.Module,
    config: LlamaConfig,
    pairs_of_heads: Iterable[tuple[int, ...]],
    generator: torch.Generator,
) -> None:
    """The first heads look at the tokens just before, by rotary pairs that turn fast."""
    query, key = _by_head(attention, "q_proj", config), _by_head(attention, "k_proj", config)
    for head, pairs in enumerate(pairs_of_heads):
        for matrix in (query, key):
            matrix[head] = torch.randn(matrix[head].shape, generator=generator) * LOCAL_STD
            matrix[head, list(pairs), 0] = LOCAL_QUERY


def _draw_copying(attention: nn.Module, config: LlamaConfig, generator: torch.Generator) -> None:
    """Values are an orthonormal part of the state, which the output puts back where it was."""
    value = _by_head(attention, "v_proj", config)
    num_heads, head_dim, width = value.shape
    output = attention.get_parameter("o_proj.weight").view(width, num_heads, head_dim)
    for head in range(num_heads):
        basis = torch.linalg.qr(torch.randn(width, head_dim, generator=generator))[0]
        basis[0] = 0
        value[head] = basis.T
        output[:, head] = basis * COPY_GAIN


def _by_head(attention: nn.Module, projection: str, config: LlamaConfig) -> torch.Tensor:
    """A view [N, H, D] of a projection's weight."""
    weight = attention.get_parameter(f"{projection}.weight")
    return weight.view(config.num_attention_heads, -1, config.hidden_size)


if __name__ == "__main__":
    import tyro

    print(make_first_model(tyro.cli(FirstModelConfig)))
