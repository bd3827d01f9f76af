"""Checkpoint folders with tokenizers that both sides of the bench read. Knows no task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from strata.engine.plan.shapes import SHAPES
from strata.scripts.bench.lm_eval.config import BenchedModel
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.real_models import find_smollm2

MAX_WORDS = 8000
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")


def make_model(name: BenchedModel, folder: Path, dtype: str, texts: Iterable[str]) -> Path:
    """The folder of a model; made when it is not there.

    Args:
        name: which one.
        folder: holds them all.
        dtype: of its weights.
        texts: what the tokenizer of random weights is trained on.
    """
    out = folder / f"lm-eval-{name}-{dtype}"
    if name == "smollm2-135m":
        return out if out.is_dir() else convert_smollm2(out, dtype)
    make_random_checkpoint(SHAPES[name], out, dtype=dtype)
    if not (out / "tokenizer.json").is_file():
        save_tokenizer(out, texts, SHAPES[name].vocab_size)
    return out


def convert_smollm2(out: Path, dtype: str) -> Path:
    """SmolLM2's weights out of their GGUF file, so that neither side's time is that of unpacking it."""
    import torch
    from transformers import AutoModelForCausalLM

    from strata.engine.prompts.tokenizer import read_tokenizer

    file = find_smollm2()
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=False,
    )
    # A model that comes from GGUF does not let itself be saved, as if it still were quantised.
    del model.config.quantization_config
    plain = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype, trust_remote_code=False)
    plain.load_state_dict(model.state_dict())
    partial = out.with_name(f"{out.name}.partial")
    plain.save_pretrained(partial)
    read_tokenizer(file).save_pretrained(partial)
    partial.rename(out)
    return out


def save_tokenizer(out: Path, texts: Iterable[str], vocab_size: int) -> None:
    """A byte-level BPE tokenizer of these texts, which cuts them about as a language model's own does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, MAX_WORDS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        out
    )
