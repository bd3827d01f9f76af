"""What `strata index` can be told: its flags. Imports nothing heavy: --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from strata.engine.types import InputError

CorpusFormat = Literal["auto", "jsonl", "parquet", "text", "beir", "cirrus"]
Language = Literal[
    "none",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "hungarian",
    "italian",
    "norwegian",
    "portuguese",
    "russian",
    "spanish",
    "swedish",
]
Stored = Literal["float16", "int8"]
"""How an index holds the vectors of an encoder."""

Codes = Literal["int8", "binary"]
"""What a first pass of dense search reads instead: 8 bits or 1 bit a dimension."""

MIN_NEAR_DUPLICATES = 0.5


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Settings of one index; every field is a flag of the same name."""

    corpus: tuple[Path, ...] = ()
    """File or folder to index; several, each with its own --corpus, are read one after the other."""
    out: Path = Path("index")
    """Folder of the index. A second call with the same settings goes on with an interrupted build."""
    format: CorpusFormat = "auto"
    """How to read the corpus: jsonl, parquet, text (one file a page), beir (a folder) or cirrus (a Wikipedia
    CirrusSearch dump); auto tells it by names."""
    id_field: str | None = None
    """Field or column of a page's id, when it has no usual name."""
    title_field: str | None = None
    """Field or column of a page's title, when it has no usual name."""
    text_field: str | None = None
    """Field or column of a page's text, when it has no usual name."""
    limit: int | None = None
    """Read only the first N pages."""
    chunk_chars: int = 512
    """Longest chunk, in characters; sentences are merged up to it."""
    chunk_tokens: int | None = None
    """Longest chunk in tokens of --tokenizer, instead of characters."""
    tokenizer: Path | None = None
    """Folder with the tokenizer.json that --chunk-tokens counts with."""
    near_duplicates: float | None = None
    """Drop a page whose estimated Jaccard similarity (word 5-grams, MinHash) to one kept before is at least
    this, e.g. 0.9. Reads the corpus twice."""
    language: Language = "english"
    """Stemmer and stop words of BM25; none keeps every word as it is."""
    chunks_per_shard: int = 100_000
    """Chunks a file; also what the build holds in memory."""
    encoder: tuple[str, ...] = ()
    """Sentence-transformers model (folder or name) whose embeddings to add; may be given several times, and
    to an index that is finished."""
    encoder_device: str = "cpu"
    """Device the encoder runs on, e.g. cuda:0."""
    encoder_batch: int = 32
    """Chunks the encoder takes at once."""
    stored: Stored = "float16"
    """How embeddings are stored; int8 takes half the space and has a scale a chunk."""
    codes: tuple[Codes, ...] = ()
    """Add codes of 8 bits or 1 bit a dimension for `strata search --first-pass`: of the vectors of --encoder,
    or of all the index has. Takes half or a sixteenth of their space; may be given twice."""
    progress: bool = False
    """Tell of progress on stderr (the command line does): a bar on a terminal, else a line a minute."""

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        if not self.corpus:
            raise InputError("--corpus: nothing to index; expected a file or a folder")
        for flag, value in (
            ("--limit", self.limit),
            ("--chunk-chars", self.chunk_chars),
            ("--chunk-tokens", self.chunk_tokens),
            ("--chunks-per-shard", self.chunks_per_shard),
            ("--encoder-batch", self.encoder_batch),
        ):
            if value is not None and value < 1:
                raise InputError(f"{flag}: {value}; expected 1 or more")
        if (self.chunk_tokens is None) != (self.tokenizer is None):
            raise InputError("--chunk-tokens and --tokenizer go together; one of them is missing")
        if self.codes and self.stored == "int8":
            raise InputError("--codes: need vectors in float16; expected --stored float16")
        threshold = self.near_duplicates
        if threshold is not None and not MIN_NEAR_DUPLICATES <= threshold <= 1:
            raise InputError(
                f"--near-duplicates: {threshold}; expected a similarity of {MIN_NEAR_DUPLICATES} to 1"
            )

    def settings(self) -> dict[str, Any]:
        """What decides the chunks and the sparse part, as JSON can hold it.

        Two builds of one corpus with equal settings are equal.
        """
        names = (
            "format",
            "id_field",
            "title_field",
            "text_field",
            "limit",
            "chunk_chars",
            "chunk_tokens",
            "near_duplicates",
            "language",
            "chunks_per_shard",
        )
        return {name: getattr(self, name) for name in names} | {
            "tokenizer": str(self.tokenizer) if self.tokenizer else None
        }
