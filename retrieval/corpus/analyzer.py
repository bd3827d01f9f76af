"""Turns text into BM25's tokens, with tantivy's tokenizer and filters. Knows nothing of indexes."""

from __future__ import annotations

from typing import Any

import tantivy

from strata.retrieval.index_config import Language

LONGEST_TOKEN_BYTES = 255

# Writing without spaces is cut into single characters, all else into words of letters, marks and digits.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
TOKEN_PATTERN = rf"[{UNSPACED}]|[\w--[{UNSPACED}_]]+"


def make_analyzer(language: Language) -> Any:
    """The tantivy analyzer of an index: words, lower case, then the language's stop words and stems.

    Its method `analyze(text)` gives the tokens of a text, repeated ones included.
    """
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(TOKEN_PATTERN))
    filters = [tantivy.Filter.lowercase(), tantivy.Filter.remove_long(LONGEST_TOKEN_BYTES)]
    if language != "none":
        filters += [tantivy.Filter.stopword(language), tantivy.Filter.stemmer(language)]
    for entry in filters:
        builder = builder.filter(entry)
    return builder.build()
