"""Pages of Wikipedia's CirrusSearch dumps: which records are pages, and where their sections begin.

A dump is a stream of pairs: {"index": {"_id"}}, then the document with `title`, `text` (plain, one line,
headings inside it), `opening_text`, `heading` (a list in reading order) and `namespace`. Newer dumps put the
document under `_source` of one object. Source: https://www.mediawiki.org/wiki/Extension:CirrusSearch/Schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from strata.engine.json_files import shown
from strata.engine.types import InputError
from strata.retrieval.types import Page

ARTICLES = 0
"""The namespace of articles; talk, user and category pages have others."""

MAX_HEADINGS = 5_000
"""One that is not found costs a look through the whole text."""

NUM_LOOKED_AT = 8
"""Characters before a heading in which the end of a sentence has to be."""

SENTENCE_MARKS = frozenset(".!?:;)]\"'\u201d\u2026")


class CirrusRecords:
    """Turns a dump's records, in order, into pages; remembers the id that stands before a document."""

    def __init__(self) -> None:
        self._id = ""

    def pages(self, record: Mapping[str, Any], place: str) -> list[Page]:
        """The page a record holds: none for a line that only names an id, and outside the articles.

        Raises:
            InputError: a document without `title` or `text`, or with something else in a field of text.
        """
        if isinstance(record.get("index"), Mapping):
            self._id = _id_text(record["index"].get("_id"), place)
            return []
        document = record.get("_source", record)
        if not isinstance(document, Mapping):
            raise InputError(f"{place}: _source is a {type(document).__name__}; expected a JSON object")
        id = _id_text(record.get("_id") or self._id or document.get("page_id"), place)
        self._id = ""
        if document.get("namespace", ARTICLES) != ARTICLES:
            return []
        return [_page(document, id, place)]


def _id_text(value: object, place: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, (str, int)):
        raise InputError(f"{place}: _id is a {type(value).__name__}; expected text or a number")
    return _clean(str(value))


def _page(document: Mapping[str, Any], id: str, place: str) -> Page:
    for name in ("title", "text"):
        if not isinstance(document.get(name), str):
            raise InputError(f"{place}: no {name}; expected a CirrusSearch document")
    title, text = (_clean(document[name]) for name in ("title", "text"))
    opening, headings = document.get("opening_text") or "", document.get("heading") or ()
    if not isinstance(opening, str):
        raise InputError(f"{place}: opening_text is a {type(opening).__name__}; expected text")
    if not isinstance(headings, (list, tuple)) or len(headings) > MAX_HEADINGS:
        raise InputError(f"{place}: heading is {shown(headings)}; expected a list of {MAX_HEADINGS} at most")
    headings = [_clean(heading) for heading in headings if isinstance(heading, str)]
    sections = tuple(cut_sections(text, _clean(opening), headings))
    return Page(id=id or title, title=title, text=text, sections=sections)


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def cut_sections(text: str, opening: str, headings: Sequence[str]) -> list[tuple[str, str]]:
    """Finds the headings in a page's running text and cuts it there; a heading stays out of the text.

    A heading counts where it stands as separate words after the end of a sentence (or straight after the
    opening or another heading), and after the headings before it. One that is not found is passed over, and
    the text it belongs to stays with the section before.

    Returns:
        (heading, text) pairs that cover the text, the first with heading ""; empty without any heading found.
    """
    start = len(opening) if opening and text.startswith(opening) else 0
    found: list[tuple[str, int, int]] = []
    for heading in headings:
        place = _find_heading(text, heading, start) if heading else -1
        if place >= 0:
            start = place + len(heading)
            found.append((heading, place, start))
    if not found:
        return []
    ends = [place for _, place, _ in found[1:]] + [len(text)]
    sections = [("", text[: found[0][1]].strip())]
    sections += [
        (heading, text[after:end].strip()) for (heading, _, after), end in zip(found, ends, strict=True)
    ]
    return [(heading, body) for heading, body in sections if body]


def _find_heading(text: str, heading: str, start: int) -> int:
    place = text.find(heading, start)
    while place >= 0:
        before = text[max(start, place - NUM_LOOKED_AT) : place].rstrip()
        after = text[place + len(heading) : place + len(heading) + 1]
        if (not before or before[-1] in SENTENCE_MARKS) and not after.isalnum():
            return place
        place = text.find(heading, place + 1)
    return -1
