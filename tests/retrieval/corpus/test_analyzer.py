"""The analyzer: words, stop words, stems, and writing without spaces."""

from __future__ import annotations

import pytest

from strata.retrieval.corpus.analyzer import make_analyzer


@pytest.mark.parametrize("language", ["none", "english"])
def test_tokens(language: str) -> None:
    tokens = make_analyzer(language).analyze("The Foxes' foo_bar\u4f60\u597dabc e\u0301t\u00e9 3.14")
    kept = ["the", "foxes"] if language == "none" else ["fox"]
    assert tokens == [*kept, "foo", "bar", "\u4f60", "\u597d", "abc", "e\u0301t\u00e9", "3", "14"]
