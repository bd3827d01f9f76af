"""Embeds an index's chunks, shard by shard; a call after an interrupted one repeats at most one block.

Also makes the codes of a first pass. Knows no search. Legend: N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from strata.engine.json_files import shown
from strata.engine.types import InputError
from strata.retrieval.corpus.chunk import searchable_text
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.encoders import Encoder
from strata.retrieval.index.manifest import Manifest, add_part, read_manifest, read_own_json, write_json
from strata.retrieval.index.vector_shard import store_vectors
from strata.retrieval.index.vector_store import (
    ENCODER_FILE,
    VECTORS_VERSION,
    VectorStore,
    chunks_digest,
    part_name,
    scale_path,
    shard_path,
    vector_folder,
)
from strata.retrieval.index.vector_writer import VectorWriter
from strata.retrieval.index_config import Codes, Stored
from strata.retrieval.types import Chunk, ReportCount

BLOCK_ROWS = 2048
"""Chunks that are encoded together: an encoder sorts them by length, so it takes blocks, not batches."""


def encode_index(
    index: Path,
    encoder: Encoder,
    *,
    stored: Stored = "float16",
    block_rows: int = BLOCK_ROWS,
    report: ReportCount = lambda num_done: None,
) -> str:
    """Adds an encoder's vectors to an index, or goes on where an interrupted call stopped.

    Peak memory: a block of chunks and its vectors, beside the encoder. An interrupted and an uninterrupted
    call leave the same files, given an encoder that repeats itself.

    Args:
        index: an index folder that has its chunks.
        encoder: what embeds them, title first.
        stored: as float16, or as int8 with a scale a row.
        block_rows: chunks that are encoded and saved together.
        report: told how many chunks have their vectors, those of earlier calls included.

    Returns:
        The name of the part in the manifest; a part that is finished is left as it is.

    Raises:
        InputError: the index is broken, or holds vectors of that name made otherwise.
        FloatingPointError: a vector is not finite in float16.
    """
    manifest, store = read_manifest(index), ChunkStore(index)
    folder, part = vector_folder(index, encoder.name), part_name(encoder.name)
    description = {
        "format_version": VECTORS_VERSION,
        **encoder.description,
        "dim": encoder.dim,
        "normalised": encoder.normalised,
        "stored": stored,
        "block_rows": block_rows,
        "shard_rows": list(store.shard_rows),
        "chunks_sha256": chunks_digest(manifest),
    }
    claim_folder(folder, description)
    if is_finished(index, manifest, part):
        report(len(store))
        return part
    for number in range(store.num_shards):
        writer = VectorWriter(shard_path(folder, number), store.shard_rows[number], encoder.dim, stored)
        for num_written in encode_shard(store.read_shard(number), writer, encoder, block_rows):
            report(store.first_row(number) + num_written)
    files = list_files(folder, range(store.num_shards))
    add_part(index, part, [path.relative_to(index) for path in files], dim=encoder.dim, stored=stored)
    return part


def is_finished(index: Path, manifest: Manifest, part: str) -> bool:
    """Whether the manifest has a part whose files are all there: its folder may have been removed since."""
    return part in manifest.parts and all((index / file).is_file() for file in manifest.parts[part]["files"])


def claim_folder(folder: Path, description: Mapping[str, Any]) -> None:
    """Writes encoder.json, or refuses a folder of vectors made otherwise (the model may have moved)."""
    path = folder / ENCODER_FILE
    if not path.exists():
        write_json(path, description)
        return
    found = read_own_json(path, expected="what `strata index --encoder` writes")
    for key in sorted({*found, *description} - {"model"}):
        if found.get(key) != description.get(key):
            raise InputError(
                f"{path}: made with {key} = {shown(found.get(key))}, now it is "
                f"{shown(description.get(key))}; expected the same encoder and settings (remove the folder "
                "to encode again)"
            )


def encode_shard(
    chunks: Iterator[Chunk], writer: VectorWriter, encoder: Encoder, block_rows: int
) -> Iterator[int]:
    """Writes the vectors of one shard's chunks, but for those that are there.

    Args:
        chunks: all chunks of the shard.
        writer: of the shard's vectors.
        encoder: what embeds the chunks.
        block_rows: chunks that are encoded and saved together.

    Yields:
        How many vectors are there after each block, and when the shard is finished.
    """
    if not writer.is_finished:
        for block in cut_blocks(islice(chunks, writer.num_written, None), block_rows):
            writer.append(*store_vectors(encode_block(block, encoder), writer.kind))
            yield writer.num_written
        writer.finish()
    yield writer.num_written


def cut_blocks(chunks: Iterator[Chunk], block_rows: int) -> Iterator[list[Chunk]]:
    """Yields lists of that many chunks; the last may be shorter."""
    while block := list(islice(chunks, block_rows)):
        yield block


def encode_block(chunks: Sequence[Chunk], encoder: Encoder) -> np.ndarray:
    """Vectors [N, D] float32 of some chunks.

    Raises:
        ValueError: the encoder gives another shape than it says, or vectors longer than it says.
        FloatingPointError: a vector is not finite in float16.
    """
    vectors = encoder.encode_passages([searchable_text(chunk) for chunk in chunks])
    if vectors.shape != (len(chunks), encoder.dim):
        raise ValueError(
            f"encoder {encoder.name}: vectors of shape {vectors.shape}; expected {(len(chunks), encoder.dim)}"
        )
    with np.errstate(over="ignore"):
        broken = ~np.isfinite(vectors.astype(np.float16)).all(axis=1)
    if broken.any():
        raise FloatingPointError(
            f"encoder {encoder.name}: the vector of chunk {chunks[int(broken.argmax())].id} is not finite in "
            "float16"
        )
    if encoder.normalised and (np.linalg.norm(vectors.astype(np.float64), axis=1) > 1.001).any():
        raise ValueError(f"encoder {encoder.name}: says its vectors are normalised, and one is longer than 1")
    return vectors


def write_codes(
    index: Path,
    name: str,
    codes: Codes,
    *,
    block_rows: int = BLOCK_ROWS,
    report: ReportCount = lambda num_done: None,
) -> str:
    """Adds codes for a first pass to an index, or goes on where an interrupted call stopped.

    They are made of an encoder's float16 vectors. Peak memory: a block of vectors.

    Args:
        index: an index folder.
        name: the encoder's folder name.
        codes: 8 bits or 1 bit a dimension.
        block_rows: vectors that are rounded and saved together.
        report: told how many vectors have their codes, those of earlier calls included.

    Returns:
        The name of the part in the manifest.

    Raises:
        InputError: the vectors are missing or broken, or are themselves int8.
    """
    part, folder = part_name(name, codes), vector_folder(index, name, codes)
    if is_finished(index, read_manifest(index), part):
        return part
    store = VectorStore(index, name)
    if store.description["stored"] != "float16":
        raise InputError(
            f"{store.folder}: vectors are stored as int8; expected float16, which {codes} codes are made of"
        )
    for number, shard in enumerate(store.open_shards()):
        writer = VectorWriter(shard_path(folder, number), shard.num_rows, store.dim, codes)
        for start in range(writer.num_written, shard.num_rows, block_rows):
            writer.append(*store_vectors(shard.codes[start : start + block_rows], codes))
            report(shard.first_row + writer.num_written)
        if not writer.is_finished:
            writer.finish()
    files = list_files(folder, range(store.num_shards))
    add_part(index, part, [path.relative_to(index) for path in files], dim=store.dim)
    return part


def list_files(folder: Path, numbers: Sequence[int]) -> list[Path]:
    """The finished files of a part: vectors or codes, scales, encoder.json."""
    paths = [shard_path(folder, number) for number in numbers]
    found = [*paths, *(scale_path(path) for path in paths), folder / ENCODER_FILE]
    return sorted(path for path in found if path.exists())
