"""Opens what a search configuration names: an index folder's searchers and the scorers of later stages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from strata.engine.types import InputError
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.encoders import Encoder
from strata.retrieval.index.manifest import read_manifest
from strata.retrieval.index_config import Language
from strata.retrieval.refine.order import EmbeddingScorer
from strata.retrieval.refine.rerank import CrossEncoderScorer, TextScorer
from strata.retrieval.search import SearchTools
from strata.retrieval.search_config import Method, SearchConfig
from strata.retrieval.types import Searcher


def open_tools(
    config: SearchConfig, reranker: TextScorer | None = None, encoder: Encoder | None = None
) -> SearchTools:
    """Opens the index and loads the models that the settings name.

    Args:
        config: the settings.
        reranker: a reranker from outside, such as a strata member; else the cross-encoder, if one is named.
        encoder: the query encoder; None loads that of the index where the settings need one.

    Returns:
        The tools of `search`; call their `close` when done. The index is only read.

    Raises:
        InputError: no index, another version, a part missing or damaged, a model that cannot be loaded, or no
            Ray cluster where one is named.
    """
    store = ChunkStore(config.index)
    language: Language = read_manifest(config.index).settings["language"]
    needs_torch = config.needs_encoder or config.cross_encoder is not None
    devices = parse_devices(config.devices) if needs_torch else ()
    if encoder is None and config.needs_encoder:
        encoder = _load_encoder(config, devices[0])
    if reranker is None and config.cross_encoder is not None:
        reranker = CrossEncoderScorer(config.cross_encoder, device=devices[0], show_progress=config.progress)
    embedding = None if encoder is None else EmbeddingScorer(encoder.encode_queries, encoder.encode_passages)
    sentences = _sentence_scorer(config, language, embedding)
    # So that what one searcher started ends when another cannot be opened.
    with ExitStack() as opened:
        searchers: dict[str, Searcher] = {
            method: _open_dense(config, encoder, devices, opened)
            if method == "dense"
            else _open_sparse(method, store, language)
            for method in config.methods
        }
        return SearchTools(
            searchers=searchers,
            read_chunks=store.chunks,
            num_rows=len(store),
            embedding=embedding,
            sentences=sentences,
            reranker=reranker,
            close=opened.pop_all().close,
        )


def parse_devices(text: str) -> tuple[str, ...]:
    """Torch devices of a flag such as `cpu` or `cuda:0,cuda:1`; `auto` takes every CUDA device, else the CPU.

    Raises:
        InputError: not a list of devices.
    """
    if text == "auto":
        import torch

        return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count())) or ("cpu",)
    devices = tuple(device.strip() for device in text.split(","))
    for device in devices:
        kind, _, number = device.partition(":")
        if kind not in ("cpu", "cuda") or (":" in device and not number.isdecimal()):
            raise InputError(f"--devices: {device!r}; expected auto, cpu, or a list such as cuda:0,cuda:1")
    return devices


def _load_encoder(config: SearchConfig, device: str) -> Encoder:
    from strata.retrieval.searchers.dense import load_index_encoder

    return load_index_encoder(config.index, config.encoder, config.encoder_folder, device=device)


def _sentence_scorer(
    config: SearchConfig, language: Language, embedding: TextScorer | None
) -> TextScorer | None:
    if not config.pages:
        return None
    if config.sentences == "embedding":
        return embedding
    from strata.retrieval.refine.two_stage import LexicalScorer

    return LexicalScorer(language)


def _open_sparse(method: Method, store: ChunkStore, language: Language) -> Searcher:
    if method == "tfidf":
        from strata.retrieval.searchers.tfidf import QuestionTfidf

        return QuestionTfidf(store)
    from strata.retrieval.searchers.bm25 import Bm25s, TantivyBm25

    return TantivyBm25(store.folder) if method == "bm25" else Bm25s(store, language)


def _open_dense(
    config: SearchConfig, encoder: Encoder | None, devices: Sequence[str], opened: ExitStack
) -> Searcher:
    from strata.retrieval.searchers.dense import DenseIndex

    assert encoder is not None, "needs_encoder is true for dense"
    if config.ray is not None:
        from strata.retrieval.searchers.ray_search import RayDenseIndex

        cluster = RayDenseIndex(config.index, encoder, address=config.ray)
        opened.callback(cluster.close)
        return cluster
    if config.first_pass is not None:
        _check_codes(config, encoder.name)
    return DenseIndex(config.index, encoder, devices=devices, first_pass=config.first_pass)


def _check_codes(config: SearchConfig, encoder: str) -> None:
    from strata.retrieval.index.vector_store import part_name

    if part_name(encoder, config.first_pass) not in read_manifest(config.index).parts:
        raise InputError(
            f"--first-pass: {config.index} has no {config.first_pass} codes of encoder {encoder!r}; expected "
            f"what `strata index` with the flags it was made with and --codes {config.first_pass} adds"
        )
