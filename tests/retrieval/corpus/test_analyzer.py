"""The analyzer: words, stop words, stems, and writing without spaces."""

from __future__ import annotations

import pytest

from strata.retrieval.corpus.analyzer import Vocabulary, make_analyzer


@pytest.mark.parametrize("language", ["none", "english"])
def test_tokens(language: str) -> None:
    tokens = make_analyzer(language).analyze("The Foxes' foo_bar\u4f60\u597dabc e\u0301t\u00e9 3.14")
    kept = ["the", "foxes"] if language == "none" else ["fox"]
    assert tokens == [*kept, "foo", "bar", "\u4f60", "\u597d", "abc", "e\u0301t\u00e9", "3", "14"]


def test_a_vocabulary_numbers_tokens_as_they_come() -> None:
    vocabulary = Vocabulary(make_analyzer("none"))
    assert vocabulary.learn("one two one") == [0, 1, 0]
    assert vocabulary.learn("Three two") == [2, 1]
    assert vocabulary.look_up("two four three") == [1, 2]
    copy = vocabulary.ids()
    assert copy == {"one": 0, "two": 1, "three": 2}
    copy["four"] = 3
    assert vocabulary.look_up("four") == []
