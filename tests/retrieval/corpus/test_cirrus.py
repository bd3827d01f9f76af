"""CirrusSearch dumps: pairs of lines, articles only, sections found in running text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from strata.engine.types import InputError
from strata.retrieval.corpus.cirrus import cut_sections
from strata.retrieval.corpus.pages import read_pages

TEXT = (
    "Mars is a planet. It has a History of water. History Romans named it. See also: History books. "
    "Moons Phobos and Deimos. History of study Telescopes came."
)
HEADINGS = ["History", "Missing", "Moons", "History of study"]


def document(**changes: object) -> dict:
    return {
        "title": "Mars",
        "text": TEXT,
        "opening_text": "Mars is a planet. It has a History of water.",
        "heading": HEADINGS,
        "namespace": 0,
        **changes,
    }


def write_dump(path: Path, records: list[dict]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def test_a_dump_gives_articles_with_ids_and_sections(tmp_path: Path) -> None:
    path = write_dump(
        tmp_path / "xwiki-20300101-cirrussearch-content.json.gz",
        [
            {"index": {"_type": "_doc", "_id": "12"}},
            document(),
            {"index": {"_id": "13"}},
            document(title="Talk:Mars", namespace=1),
            {"_id": "14", "_source": document(title="Moon", heading=[])},
        ],
    )
    mars, moon = read_pages([path])
    assert (mars.id, mars.title, mars.text) == ("12", "Mars", TEXT)
    assert mars.sections == (
        ("", "Mars is a planet. It has a History of water."),
        ("History", "Romans named it. See also: History books."),
        ("Moons", "Phobos and Deimos."),
        ("History of study", "Telescopes came."),
    )
    assert (moon.id, moon.title, moon.sections) == ("14", "Moon", ())


@pytest.mark.parametrize("name", ["title", "text"])
def test_a_document_without_its_fields_is_named(tmp_path: Path, name: str) -> None:
    path = write_dump(tmp_path / "cirrussearch.json.gz", [{"index": {"_id": "1"}}, document(**{name: None})])
    with pytest.raises(InputError, match=f"line 2: no {name}"):
        list(read_pages([path]))


def test_sections_cover_the_text_whatever_the_headings() -> None:
    for headings in ([], ["Nowhere"], ["Moons"], ["Mars"], ["", "Moons"], ["Moons", "History"]):
        sections = cut_sections(TEXT, "", headings)
        rebuilt = " ".join(f"{heading} {text}".strip() for heading, text in sections)
        assert rebuilt == (TEXT if sections else "")
