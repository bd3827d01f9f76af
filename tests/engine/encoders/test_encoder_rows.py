"""Rows that an encoder reads: what is cut, how rows share batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import transformers as hf
from tokenizers.normalizers import Replace

from strata.engine.encoders.encoder import measure_encoder
from strata.engine.encoders.rows import EncoderTokenizer, batch_by_length
from strata.engine.types import Question, RunWarnings

from .tiny_encoder import LONG


def test_question_and_option_too_long_for_the_window_keep_the_option(encoder: Callable[..., Path]) -> None:
    folder, warnings = encoder("bert"), RunWarnings()
    shape = measure_encoder(hf.AutoConfig.from_pretrained(folder))
    writer = EncoderTokenizer(folder, shape, None, warnings, source="file")
    question = Question(id="7", prompt=LONG, options=("the sea", "sand"), context="The moon.")
    (prompt,) = writer.encode([question])
    assert [len(branch.token_ids) for branch in prompt.branches] == [64, 64]
    texts = [branch.text for branch in writer.with_texts(prompt).branches]
    assert texts[0].endswith("the sea[SEP]")
    assert texts[1].endswith("sand[SEP]")
    assert not any("moon" in text for text in texts)
    assert warnings.rows == {"longer than the window": ["7"]}
    assert prompt.num_truncated_tokens > 0


def test_context_that_just_fits_or_just_does_not(encoder: Callable[..., Path]) -> None:
    folder = encoder("bert")
    shape = measure_encoder(hf.AutoConfig.from_pretrained(folder))
    question = Question(id="1", prompt="Which?", options=("a", "b"), context="The moon pulls.")
    writer = EncoderTokenizer(folder, shape, None, RunWarnings(), source="file")
    whole = writer.encode([question])[0].longest_tokens
    for max_tokens in range(12, whole + 2):
        writer = EncoderTokenizer(folder, shape, max_tokens, RunWarnings(), source="file")
        (prompt,) = writer.encode([question])
        assert prompt.longest_tokens == min(max_tokens, whole)
        assert prompt.num_truncated_tokens == whole - prompt.longest_tokens


def test_batches_hold_every_question_once_within_the_budget() -> None:
    generator = np.random.default_rng(0)
    lengths = [(int(rows), int(tokens)) for rows, tokens in generator.integers(1, 30, (200, 2))]
    batches = batch_by_length(lengths, 100)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    for batch in batches:
        padded = sum(lengths[index][0] for index in batch) * max(lengths[index][1] for index in batch)
        assert padded <= 100 or len(batch) == 1
    firsts = [lengths[batch[0]][1] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_replace_keeps_rows(encoder: Callable[..., Path]) -> None:
    folder = encoder("bert")
    shape = measure_encoder(hf.AutoConfig.from_pretrained(folder))
    assert shape.reads_token_types
    assert not measure_encoder(hf.AutoConfig.from_pretrained(encoder("deberta"))).reads_token_types
    writer = EncoderTokenizer(folder, shape, None, RunWarnings(), source="file")
    (prompt,) = writer.encode([Question(id="1", prompt="Which?", options=("a", "b"), context="The moon.")])
    assert replace(prompt, num_truncated_tokens=2).token_types is prompt.token_types


def test_options_that_the_tokenizer_loses_are_told(encoder: Callable[..., Path]) -> None:
    folder, warnings = encoder("bert"), RunWarnings()
    shape = measure_encoder(hf.AutoConfig.from_pretrained(folder))
    writer = EncoderTokenizer(folder, shape, None, warnings, source="file")
    writer.tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")
    writer.encode([Question(id="7", prompt="What?", options=("\u200b", "the sea", ""), context="The moon.")])
    assert warnings.rows == {"option of no tokens": ["7"]}
