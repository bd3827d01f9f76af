"""Makes the demo's model, a small random Llama and its tokenizer, as a Hugging Face folder, with no download.

It is untrained and exists so that the whole way through can be tried anywhere. Knows nothing of scoring.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from strata.engine.types import InputError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

QUESTIONS_PATH = Path(__file__).parent / "demo_data" / "questions.csv"
RECEIPT_NAME = "demo.json"
RECIPE_VERSION = 1
VOCABULARY_SIZE = 2000
BOS, EOS = "<s>", "</s>"
HIDDEN_SIZE = 128


def make_demo_checkpoint(out: Path, *, seed: int = 0) -> Path:
    """Write the demo checkpoint to a folder, or leave it alone when it is there and whole.

    The folder appears complete or not at all: everything is written beside it and renamed. The same seed
    gives the same tokenizer and weights. Needs about 5 MiB of disk; leaves torch's random state as it was.

    Args:
        out: The folder to make; its parents are made as well.
        seed: Seed of the random weights.

    Returns:
        `out`.

    Raises:
        InputError: If `out` exists and holds something that is not a demo checkpoint.
    """
    if is_whole(out, seed):
        return out
    refuse_foreign(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / out.name
        train_tokenizer(read_demo_text()).save_pretrained(made)
        save_model(build_model(seed), made)
        write_receipt(made, seed)
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(made, out)
    return out


def is_whole(out: Path, seed: int) -> bool:
    """Whether the folder holds a demo checkpoint of this recipe and seed, every file in its full size."""
    receipt = out / RECEIPT_NAME
    if not receipt.is_file():
        return False
    try:
        found = json.loads(receipt.read_text(encoding="utf-8"))
        recipe, files = found["recipe"], found["files_bytes"]
    except (ValueError, LookupError, TypeError):
        return False
    return recipe == describe_recipe(seed) and files == measure_files(out, files)


def refuse_foreign(out: Path) -> None:
    """Raise InputError when `out` is anything but absent, an empty folder or an earlier demo checkpoint."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink() or (any(out.iterdir()) and not (out / RECEIPT_NAME).is_file()):
        raise InputError(
            f"{out}: expected no such path or a demo checkpoint; it is something else and is left as it is"
        )


def describe_recipe(seed: int) -> dict:
    """What decides the checkpoint's content; another recipe means the checkpoint is made anew."""
    text_sha256 = hashlib.sha256(QUESTIONS_PATH.read_bytes()).hexdigest()
    return {"version": RECIPE_VERSION, "seed": seed, "tokenizer_text_sha256": text_sha256}


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config.json and model.safetensors; `save_pretrained` would show a progress bar for nothing."""
    from safetensors.torch import save_file

    model.config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def write_receipt(folder: Path, seed: int) -> None:
    """Leave a file that tells the recipe and the size of every other file."""
    files = measure_files(folder, [path.name for path in sorted(folder.iterdir())])
    receipt = {
        "note": "made by `strata demo`: random weights, never trained; its answers mean nothing",
        "recipe": describe_recipe(seed),
        "files_bytes": files,
    }
    (folder / RECEIPT_NAME).write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")


def measure_files(folder: Path, names: list[str] | dict[str, int]) -> dict[str, int]:
    """Size in bytes of each named file; those that are absent are left out."""
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


def read_demo_text() -> list[str]:
    """Every text of the bundled questions: prompts, contexts and options, in the file's order."""
    with QUESTIONS_PATH.open(encoding="utf-8", newline="") as file:
        return [row[column] for row in csv.DictReader(file) for column in ("context", "prompt", *"ABCDE")]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts BOS in front of every text; the same texts give the same one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def build_model(seed: int) -> LlamaForCausalLM:
    """A random Llama of about 1.2 million parameters, in float32 so that machines differ very little."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        bos_token_id=0,
        eos_token_id=1,
        # Keeps activations at unit scale; the usual 0.02 would make all options look alike at this width.
        initializer_range=HIDDEN_SIZE**-0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(torch.float32)
