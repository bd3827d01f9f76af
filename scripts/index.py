"""`strata index`: builds an index folder and prints what came out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from strata.engine.folder_lock import lock_folder
from strata.engine.types import InputError
from strata.retrieval.index_config import IndexConfig

if TYPE_CHECKING:
    from strata.retrieval.index.build import BuildReport, ReportStage

REQUIRED = ("tantivy", "datasketch")
REFRESH_EVERY = 64
STAGES = {
    "signatures": "pages compared for near-duplicates",
    "pages": "pages cut into chunks",
    "chunks": "chunks indexed for BM25",
    "vectors": "chunks embedded",
    "codes": "vectors rounded to codes",
}


def run_index(config: IndexConfig) -> int:
    """Builds and prints a summary. Returns the exit status."""
    config.check()
    require_packages(REQUIRED)
    check_codes(config)
    from strata.retrieval.index.build import build_index

    with lock_folder(config.out, "--out"), count_stages(shown=config.progress) as report:
        done = build_index(config, report)
        names = [add_encoder(config, encoder, report) for encoder in config.encoder]
        add_codes(config, names, report)
    for line in describe_index(done, config):
        print(line)
    return 0


def add_encoder(config: IndexConfig, model: str, report: ReportStage) -> str:
    """Embeds the chunks with one encoder, as a further part of the index; returns its name there.

    Raises:
        InputError: sentence-transformers is not installed, or the model cannot be loaded.
    """
    require_packages(("sentence_transformers",))
    from strata.retrieval.index.encode import encode_index
    from strata.retrieval.index.encoders import EncoderSettings, SentenceEncoder

    settings = EncoderSettings(model=model, device=config.encoder_device, batch_size=config.encoder_batch)
    encoder = SentenceEncoder(settings)
    encode_index(
        config.out, encoder, stored=config.stored, report=lambda num_done: report("vectors", num_done)
    )
    return encoder.name


def check_codes(config: IndexConfig) -> None:
    """Refuses --codes where there will be no vectors to make them of, before anything is built."""
    if not config.codes or config.encoder:
        return
    from strata.retrieval.index.manifest import MANIFEST_FILE
    from strata.retrieval.index.vector_store import list_encoders

    if not (config.out / MANIFEST_FILE).exists() or not list_encoders(config.out):
        raise InputError(f"--codes: {config.out} has no vectors to make them of; expected an --encoder")


def add_codes(config: IndexConfig, names: Sequence[str], report: ReportStage) -> None:
    """Makes the codes of a first pass, of these encoders' vectors or else of all there are."""
    if not config.codes:
        return
    from strata.retrieval.index.encode import write_codes
    from strata.retrieval.index.vector_store import list_encoders

    for name in names or list_encoders(config.out):
        for codes in config.codes:
            write_codes(config.out, name, codes, report=lambda num_done: report("codes", num_done))


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
    lines += [f"with {codes} codes for a first pass" for codes in dict.fromkeys(config.codes)]
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
def count_stages(*, shown: bool) -> Iterator[ReportStage]:
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
            if stage in ("chunks", "vectors", "codes") or num_done % REFRESH_EVERY == 0:
                progress.update(task, description=f"{num_done:,} {STAGES[stage]}")

        yield report
