"""The tokenizer of whole texts; its memory is watched from outside, by psutil."""

from __future__ import annotations

import gc
from itertools import count

import psutil
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from strata.engine.prompts.tokenizer import JointTokenizer

MIB = 2**20


def test_words_are_forgotten_with_the_tokenizer() -> None:
    """With the library's cache of words, 200,000 of them stay for good: about 50 MiB."""
    backend = Tokenizer(models.BPE({letter: id for id, letter in enumerate("w0123456789")}, []))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    numbers = count()

    def encode_new_words() -> int:
        for _ in range(20):
            JointTokenizer(tokenizer).encode([f"w{next(numbers)}" for _ in range(5_000)])
        gc.collect()
        return psutil.Process().memory_info().rss

    encode_new_words()
    before = encode_new_words()
    assert encode_new_words() - before < 8 * MIB
