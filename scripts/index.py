"""`strata index`: builds an index folder and prints what came out."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from strata.engine.types import InputError
from strata.retrieval.index_config import IndexConfig

if TYPE_CHECKING:
    from strata.retrieval.build import BuildReport

REQUIRED = ("tantivy", "datasketch")
REFRESH_EVERY = 64
STAGES = {
    "signatures": "pages compared for near-duplicates",
    "pages": "pages cut into chunks",
    "chunks": "chunks indexed for BM25",
    "vectors": "chunks embedded",
}


def run_index(config: IndexConfig) -> int:
    """Builds and prints a summary. Returns the exit status."""
    require_packages(REQUIRED)
    from strata.retrieval.build import build_index

    with count_stages(shown=config.progress) as report:
        done = build_index(config, report)
        for encoder in config.encoder:
            add_encoder(config, encoder, report)
    for line in describe_index(done, config):
        print(line)
    return 0


def add_encoder(config: IndexConfig, model: str, report: Callable[[str, int], object]) -> None:
    """Embeds the chunks with one encoder, as a further part of the index.

    Raises:
        InputError: sentence-transformers is not installed, or the model cannot be loaded.
    """
    require_packages(("sentence_transformers",))
    from strata.retrieval.encode import encode_index
    from strata.retrieval.encoders import EncoderSettings, SentenceEncoder

    settings = EncoderSettings(model=model, device=config.encoder_device, batch_size=config.encoder_batch)
    encoder = SentenceEncoder(settings)
    encode_index(
        config.out, encoder, stored=config.stored, report=lambda num_done: report("vectors", num_done)
    )


def describe_index(done: BuildReport, config: IndexConfig) -> list[str]:
    """What a user wants to know of a finished index, a line each."""
    manifest = done.manifest
    lines = []
    if done.num_resumed_chunks:
        lines.append(f"{done.num_resumed_chunks:,} of {manifest.num_chunks:,} chunks were there before")
    if done.num_empty_pages:
        lines.append(f"{done.num_empty_pages:,} page(s) without text")
    if done.num_dropped_pages:
        lines.append(f"{done.num_dropped_pages:,} page(s) left out as near-duplicates of earlier ones")
    lines += [f"embedded by {encoder}" for encoder in config.encoder]
    return [*lines, f"{manifest.num_pages:,} page(s), {manifest.num_chunks:,} chunk(s): {config.out}"]


def require_packages(names: tuple[str, ...]) -> None:
    """Raises InputError when a package of the extra `retrieval` is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"this command needs {', '.join(missing)}; expected an install with the extra: "
            'pip install "strata-score[retrieval]"'
        )


@contextmanager
def count_stages(*, shown: bool) -> Iterator[Callable[[str, int], None]]:
    """Yields what a build reports to; shows the stage's running count on stderr (the total is unknown)."""
    if not shown:
        yield lambda stage, num_done: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading the corpus", total=None)

        def report(stage: str, num_done: int) -> None:
            if stage in ("chunks", "vectors") or num_done % REFRESH_EVERY == 0:
                progress.update(task, description=f"{num_done:,} {STAGES[stage]}")

        yield report
