"""What `strata search` can be told: its flags. Imports nothing heavy: --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.engine.ray_cluster import check_address
from strata.engine.types import InputError
from strata.retrieval.index_config import Codes

Method = Literal["bm25", "bm25s", "tfidf", "dense"]
QueryForm = Literal["prompt", "prompt-options", "prompt3-options", "option"]
Fusion = Literal["rrf", "scores"]
Order = Literal["score", "edit-distance", "embedding"]
RRF_K = 60
"""The constant of reciprocal rank fusion, as its authors fixed it."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of one search; every field is a flag of the same name."""

    index: Path
    """Folder that `strata index` made."""
    questions: Path
    """Question file as for `strata score`, or BEIR's queries.jsonl (_id, text)."""
    out: Path | None = None
    """The question file with contexts: .csv, .parquet or .jsonl; <name>.search.json beside it tells of the
    search. Not needed with --qrels."""
    method: tuple[Method, ...] = ()
    """Search with bm25 (tantivy; the default), bm25s (in RAM), tfidf or dense; repeat to fuse several."""
    encoder: str | None = None
    """With dense: which of the index's encoders; not needed when it has one."""
    encoder_folder: Path | None = None
    """With dense: where that encoder's model lies, if no longer where it was when the index was made."""
    first_pass: Codes | None = None
    """With dense: search codes of 8 bits or 1 bit a dimension first (`strata index --codes` makes them) and
    rescore the best exactly; the recall against an exact search is measured and printed."""
    ray: str | None = None
    """With dense: share the search out over the nodes of a Ray cluster, with the same result. HOST:PORT of
    its head, auto for the one that this machine is in, or local to start one here. Every node has to see the
    index at the same path; --devices is then for the models here alone."""
    query: QueryForm = "prompt3-options"
    """What is asked: prompt and all options, the prompt three times and all options, or one query an option
    (a chunk keeps the best of its scores)."""
    candidates: int = 100
    """Chunks that each method finds for a question."""
    fusion: Fusion = "scores"
    """How several methods become one: by reciprocal ranks or by scores scaled to 0..1."""
    weight: tuple[float, ...] = ()
    """Weight of a method in the fusion; one for each --method, in their order."""
    rrf_k: int = RRF_K
    """The constant of reciprocal rank fusion."""
    keep: int = 50
    """Best chunks of a question that go on to sentences, reranking, order and context."""
    pages: int = 0
    """Two-stage search: this many best pages, then the best sentences within them; 0 keeps chunks."""
    sentences: Literal["lexical", "embedding"] = "lexical"
    """How --pages compares sentences: BM25 among them, or the index's encoder."""
    cross_encoder: Path | None = None
    """Rerank with this sentence-transformers cross-encoder."""
    member: Path | None = None
    """Rerank with this decoder checkpoint, scored as `strata score` does: is the passage of help?"""
    member_adapter: tuple[Path, ...] = ()
    """PEFT LoRA adapter of --member."""
    member_template: str | None = None
    """Template of --member (prompt is the query, option the passage); strata's own by default."""
    memory_gib: float | None = None
    """With --member: budget for weights and activations on a device."""
    order: Order = "score"
    """Order of the chunks of a context, best first."""
    order_top: int = 20
    """With an --order other than score: sort this many of the best chunks; the others follow by score."""
    tokenizer: Path | None = None
    """Folder of the reader's tokenizer, which the budget is counted in; without it, 3 characters a token."""
    context_tokens: int = 1000
    """Budget of a context in tokens."""
    context_chunks: int | None = None
    """Most chunks of a context."""
    id_column: str = "id"
    """Column that holds ids; in a file without one, rows' numbers are ids."""
    context_column: str = "context"
    """Column for the context; one of that name in the file is replaced."""
    num_contexts: int = 1
    """Several differing contexts a question, which share no chunk, in columns NAME, NAME_2, NAME_3, ..."""
    context_per_method: bool = False
    """Add a context of each method alone, in columns NAME_bm25, NAME_dense, ..."""
    qrels: Path | None = None
    """Judgements (BEIR or TREC): prints nDCG@10, MAP and recall of each method and stage."""
    per_query: Path | None = None
    """With --qrels: CSV of the measures of every query."""
    devices: str = "auto"
    """Devices of dense search, such as cpu or cuda:0,cuda:1; the first also has the encoder."""
    limit: int | None = None
    """Only the first N questions."""
    progress: bool = False
    """Tell of progress on stderr (the command line does): a bar on a terminal, else a line a minute."""

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods to search with: BM25 unless told otherwise."""
        return self.method or ("bm25",)

    @property
    def needs_encoder(self) -> bool:
        """Whether a query encoder has to be loaded."""
        by_sentences = self.pages > 0 and self.sentences == "embedding"
        return "dense" in self.methods or self.order == "embedding" or by_sentences

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        for flag, value, least in (
            ("--candidates", self.candidates, 1),
            ("--rrf-k", self.rrf_k, 0),
            ("--keep", self.keep, 1),
            ("--pages", self.pages, 0),
            ("--order-top", self.order_top, 1),
            ("--context-tokens", self.context_tokens, 1),
            ("--context-chunks", self.context_chunks, 1),
            ("--num-contexts", self.num_contexts, 1),
            ("--limit", self.limit, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"{flag}: {value}; expected {least} or more")
        if len(set(self.methods)) < len(self.methods):
            raise InputError(f"--method: {', '.join(self.methods)}; expected each method once")
        self._check_weights()
        self._check_pairs()

    def _check_weights(self) -> None:
        if self.weight and len(self.weight) != len(self.methods):
            raise InputError(
                f"--weight: {len(self.weight)} given for {len(self.methods)} method(s); expected one each"
            )
        if any(not 0 <= weight < float("inf") for weight in self.weight):
            raise InputError(f"--weight: {', '.join(map(str, self.weight))}; expected numbers of 0 or more")

    def _check_pairs(self) -> None:
        if self.out is None and self.qrels is None:
            raise InputError("--out: missing; expected a file for the contexts, or --qrels to measure")
        if self.out is not None and self.out.suffix.lower() not in (".csv", ".parquet", ".jsonl"):
            raise InputError(f"--out: {self.out}; expected a name in .csv, .parquet or .jsonl")
        if self.per_query is not None and self.qrels is None:
            raise InputError("--per-query: needs --qrels; there is nothing to measure without it")
        if self.cross_encoder is not None and self.member is not None:
            raise InputError("--cross-encoder and --member: both rerank; expected one of them")
        if self.member is None and (self.member_adapter or self.member_template):
            raise InputError("--member-adapter and --member-template: need --member; it is missing")
        if self.first_pass is not None and "dense" not in self.methods:
            raise InputError("--first-pass: needs --method dense; it is missing")
        self._check_ray()
        if not self.context_column.strip():
            raise InputError("--context-column: is blank; expected a name")

    def _check_ray(self) -> None:
        if self.ray is None:
            return
        if "dense" not in self.methods:
            raise InputError("--ray: needs --method dense; it is missing")
        if self.first_pass is not None:
            raise InputError("--ray and --first-pass: a cluster searches exactly; expected one of them")
        check_address(self.ray)
