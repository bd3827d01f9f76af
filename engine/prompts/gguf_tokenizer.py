"""The tokenizer that a GGUF file's metadata describe, made by transformers. Knows no weights."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerFast

from strata.engine.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIX = ".gguf"
SPLIT_NUMBER = re.compile(r"-\d{5}(-of-\d{5}\.gguf)$")


def is_gguf_file(path: Path) -> bool:
    """Whether a path names a GGUF file rather than a checkpoint's directory."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


def build_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, or of the first file of its split, which holds the metadata.

    Files beside it have no say: transformers is shown a folder that holds this file alone.

    Raises:
        InputError: metadata that make none.
    """
    first = path.with_name(SPLIT_NUMBER.sub(r"-00001\1", path.name))
    with tempfile.TemporaryDirectory(prefix="strata-gguf-") as folder:
        (Path(folder) / f"model{SUFFIX}").symlink_to(first.resolve())
        try:
            return PreTrainedTokenizerFast.from_pretrained(
                folder, gguf_file=f"model{SUFFIX}", local_files_only=True, trust_remote_code=False
            )
        # The tokenizers library raises Exception itself.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{path}: its metadata make no tokenizer: {reason}") from None
