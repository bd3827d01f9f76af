"""Turns text into BM25's tokens, with tantivy's tokenizer and filters, and numbers them. Knows no index."""

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


class Vocabulary:
    """Numbers the tokens of texts, in the order in which they first come.

    Args:
        analyzer: what `make_analyzer` made.
    """

    def __init__(self, analyzer: Any) -> None:
        self._analyzer = analyzer
        self._ids: dict[str, int] = {}

    def learn(self, text: str) -> list[int]:
        """The numbers of a text's tokens; those that are new get the next ones."""
        ids = self._ids
        return [ids.setdefault(token, len(ids)) for token in self._analyzer.analyze(text)]

    def look_up(self, text: str) -> list[int]:
        """The numbers of those of a text's tokens that have one."""
        return [self._ids[token] for token in self._analyzer.analyze(text) if token in self._ids]

    def ids(self) -> dict[str, int]:
        """A copy of the numbers by token, which is the caller's."""
        return dict(self._ids)
