"""Owns the tiny random checkpoints the tests score: one builder a model family, and their shared tokenizer.

Weights are drawn large, biases and norms at random, windows shorter than the prompts and soft caps low, so
that forgetting any of them moves a score by far more than the tolerances. Knows nothing of the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY_SIZE = 384
LAYERS_PER_MODEL = 3
SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS_PER_MODEL,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "sliding_window": 16,
    "hidden_activation": "gelu_pytorch_tanh",
}
PARTIAL_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}

CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama-mha": lambda: hf.LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}),
    "llama-gqa": lambda: hf.LlamaConfig(**SHAPE),
    "llama-tied": lambda: hf.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral": lambda: hf.MistralConfig(**SHAPE, sliding_window=16),
    "qwen2": lambda: hf.Qwen2Config(**SHAPE),
    "qwen3": lambda: hf.Qwen3Config(**SHAPE, head_dim=16),
    "gemma2": lambda: hf.Gemma2Config(
        **SHAPE, **GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=7.0
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **SHAPE, **GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    # A padding id beyond the number of tokens in use: a table of the rows in use is shorter than it.
    "phi3": lambda: hf.Phi3Config(
        **{**SHAPE, "pad_token_id": VOCABULARY_SIZE - 1}, rope_parameters=PARTIAL_ROTARY
    ),
    "olmo2": lambda: hf.Olmo2Config(**SHAPE),
    "mixtral": lambda: hf.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
}
FAMILIES = tuple(CONFIGS)
CLASSIFIER_FAMILIES = ("llama-gqa", "qwen3")

TOKENIZER_TEXT = """\
Read the context and the question, then judge the proposed answer. The river carries sand from the hills
to the sea. Which of the following statements is true? A stone falls as fast as a feather where there is
no air to slow it. Copper, iron and tin were melted together by the smiths of the valley. Warm water
rises, cold water sinks below it. Below is an instruction that describes a task, paired with an input.
Write a response that completes the request. Answer with one letter, A or B: is it A or is it B? The
question: what makes the tide turn? The moon pulls on the ocean, and so does the sun. A bee finds the
field again by the light of the sky. The options are listed below; only one of them is correct.
"""


def build_tokenizer() -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 384 tokens that starts every text with `<s>`; it knows any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT.splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build_letterless_tokenizer() -> hf.PreTrainedTokenizerFast:
    """A word tokenizer that knows eight words only: every label is unknown to it."""
    words = ["<unk>", "<s>", "the", "question", "river", "sea", "answer", "is"]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def randomize_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew: matrices wide, norms around neutral, biases far from zero."""
    generator = torch.Generator().manual_seed(seed)
    gemma = "Gemma" in type(model).__name__
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                # Gemma multiplies by 1 + weight.
                parameter.copy_(0.3 * noise if gemma else 1 + 0.3 * noise)
            else:
                parameter.copy_(0.2 * noise)


def build_causal_lm(family: str, folder: Path, max_shard_size: str = "1GB") -> Path:
    """Save a random float32 language model of `family` and the tokenizer in `folder`; return the folder."""
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
    randomize_weights(model)
    return save_with_tokenizer(model, folder, max_shard_size)


def build_classifier(family: str, folder: Path) -> Path:
    """Save a random float32 SequenceClassification model with one output."""
    config = CONFIGS[family]()
    config.num_labels = 1
    model = hf.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    randomize_weights(model)
    return save_with_tokenizer(model, folder, "1GB")


def build_contrast_classifier(family: str, folder: Path) -> Path:
    """A classifier with `score.weight` [1, 2 D]: an option's own readout, then the mean of the others'."""
    build_classifier(family, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    tensors["score.weight"] = 0.3 * torch.randn(1, 2 * SHAPE["hidden_size"], generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_with_tokenizer(model: hf.PreTrainedModel, folder: Path, max_shard_size: str = "1GB") -> Path:
    """Saves a model and the tokenizer of these tests; returns the folder."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    build_tokenizer().save_pretrained(folder)
    return folder
