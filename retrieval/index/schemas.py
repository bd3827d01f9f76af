"""What the JSON files of an index folder have to hold: the manifest, a build's journal, encoder.json.

The values themselves are used as they were read: a schema only says what they are. Knows no file names.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from strata.engine.json_files import Schema
from strata.retrieval.index_config import Language, Stored

MAX_COUNT = 1 << 53
"""No corpus has so many pages, chunks or bytes, and JSON numbers are exact up to it."""

MAX_DIM = 1 << 20
MAX_NAME_CHARS = 500

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


def _stay_inside(name: str) -> str:
    path = PurePosixPath(name)
    if not name.isprintable() or "\\" in name or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("expected a path inside the index folder")
    return name


InnerPath = Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(_stay_inside)]
"""A file or part by its path in the index folder."""


class FileSchema(Schema):
    """One file of a part: its size and its SHA-256 in hexadecimal digits."""

    bytes: Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class CorpusFileSchema(Schema):
    """One file of the corpus as it was then."""

    path: str
    bytes: Count


class PartSchema(Schema):
    """A part of an index; what a part notes of itself has a schema of its own."""

    files: dict[InnerPath, FileSchema]


class ChunksSchema(PartSchema):
    """The chunks' part."""

    num_empty_pages: Count
    num_dropped_pages: Count


class TantivySchema(PartSchema):
    """The BM25 part."""

    language: Language


class SettingsSchema(Schema):
    """Of a build's settings, what its readers need."""

    language: Language


class ManifestSchema(Schema):
    """manifest.json."""

    settings: SettingsSchema
    corpus: list[CorpusFileSchema]
    num_pages: Count
    num_chunks: Count
    parts: dict[InnerPath, PartSchema]


class JournalSchema(Schema):
    """building.json."""

    settings: SettingsSchema
    corpus: list[CorpusFileSchema]
    files: dict[InnerPath, FileSchema]
    num_pages: Count
    num_chunks_of_next: Count
    num_chunks: Count
    num_empty: Count
    num_dropped: Count
    is_whole: bool


class PromptsSchema(Schema):
    """What an encoder was given before queries and passages."""

    query: str = ""
    passage: str = ""


class EncoderSchema(Schema):
    """encoder.json."""

    dim: int = Field(ge=1, le=MAX_DIM)
    normalised: bool
    stored: Stored
    shard_rows: list[Count]
    chunks_sha256: str
    model: str
    prompts: PromptsSchema = PromptsSchema()
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_COUNT)


class ProgressSchema(Schema):
    """NNNNN.progress.json of a shard of vectors."""

    num_rows: Count
