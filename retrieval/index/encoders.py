"""Text encoders: what dense search needs, and sentence-transformers models with their family's prompts.

Knows no index. Legend: N texts, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from strata.engine.types import InputError
from strata.retrieval.index.packaged_encoder import PACKAGES, check_paraphrases, find_packaged_model

logger = logging.getLogger(__name__)

QUERY_PROMPTS = ("query",)
PASSAGE_PROMPTS = ("document", "passage", "corpus")
"""Names under which a model's prompts are looked for, as sentence-transformers' encode_document does."""


class Encoder(Protocol):
    """Turns texts into vectors whose inner product says how well a passage answers a query."""

    @property
    def name(self) -> str:
        """The folder of its vectors in an index."""
        ...

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        ...

    @property
    def normalised(self) -> bool:
        """Whether every vector has length 1."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """What JSON should hold of it: vectors of equal descriptions may be compared, of others not."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """[N, D] float32."""
        ...

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        """[N, D] float32."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What goes before a query and before a passage."""

    query: str = ""
    passage: str = ""


BGE_ENGLISH = "Represent this sentence for searching relevant passages: "
BGE_CHINESE = "为这个句子生成表示以用于检索相关文章："  # noqa: RUF001
E5_TASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "

FAMILIES: tuple[tuple[str, Prompts], ...] = (
    (r"e5.*instruct", Prompts(query=E5_TASK)),
    (r"(^|[-_])e5([-_]|$)", Prompts(query="query: ", passage="passage: ")),
    (r"bge-(small|base|large)-zh", Prompts(query=BGE_CHINESE)),
    (r"bge-(small|base|large)-en|arctic-embed|mxbai-embed", Prompts(query=BGE_ENGLISH)),
    (r"nomic-embed", Prompts(query="search_query: ", passage="search_document: ")),
    (r"(^|[-_])gte([-_]|$)|bge-m3|minilm|mpnet|distilroberta|(^|[-_])gtr([-_]|$)|contriever", Prompts()),
)
"""Patterns of lower-case model names and their prompts, from the models' cards; the first match holds."""


def find_prompts(name: str, configured: Mapping[str, str]) -> Prompts:
    """The prompts of a model: those that it brings, or else those of its family.

    Args:
        name: a model's name or folder; only the last part counts.
        configured: prompts by name from the model's configuration.

    Returns:
        Empty prompts for a family that is not known; a warning is logged.
    """
    query = next((configured[key] for key in QUERY_PROMPTS if configured.get(key)), "")
    passage = next((configured[key] for key in PASSAGE_PROMPTS if configured.get(key)), "")
    if query or passage:
        return Prompts(query=query, passage=passage)
    last = Path(name).name.lower()
    for pattern, prompts in FAMILIES:
        if re.search(pattern, last):
            return prompts
    logger.warning("%s: a model of no known family and without prompts of its own; none are used", name)
    return Prompts()


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How to load a sentence-transformers model.

    `model` is a folder, or the name of a model that an installed package holds or that is in the local
    Hugging Face cache. `query_prompt` and `passage_prompt` replace those of the model or its family.
    `max_tokens` shortens the model's window. `batch_size` and `device` have no part in the vectors'
    meaning.
    """

    model: str
    device: str = "cpu"
    batch_size: int = 32
    max_tokens: int | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None

    def __post_init__(self) -> None:
        for flag, value in (("batch_size", self.batch_size), ("max_tokens", self.max_tokens)):
            if value is not None and value < 1:
                raise InputError(f"{flag}: {value}; expected 1 or more")


class SentenceEncoder:
    """A sentence-transformers model; vectors have length 1.

    Raises:
        InputError: the model cannot be loaded, or comes as a package and encodes no sense.
    """

    normalised = True

    def __init__(self, settings: EncoderSettings) -> None:
        packaged = find_packaged_model(settings.model)
        self._model = _load(settings, packaged)
        self._settings = settings
        found = find_prompts(settings.model, self._model.prompts or {})
        self.prompts = Prompts(
            query=found.query if settings.query_prompt is None else settings.query_prompt,
            passage=found.passage if settings.passage_prompt is None else settings.passage_prompt,
        )
        self.name = encoder_name(settings.model)
        self.dim = _dim(self._model)
        self.description: Mapping[str, Any] = {
            "model": _place(settings.model),
            "weights_sha256": weights_digest(self._model),
            "modules": [type(module).__name__ for module in self._model],
            "pooling": _pooling(self._model),
            "prompts": asdict(self.prompts),
            "max_tokens": self._model.max_seq_length,
            "dim": self.dim,
            "normalised": self.normalised,
        }
        if packaged is not None:
            check_paraphrases(lambda texts: self._encode(texts, ""), settings.model)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of queries, [N, D] float32."""
        return self._encode(texts, self.prompts.query)

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of passages, [N, D] float32."""
        return self._encode(texts, self.prompts.passage)

    def _encode(self, texts: Sequence[str], prompt: str) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        vectors = self._model.encode(
            list(texts),
            prompt=prompt,
            batch_size=self._settings.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


def _load(settings: EncoderSettings, packaged: Path | None) -> Any:
    from sentence_transformers import SentenceTransformer

    from strata.engine.model_files.config_file import read_config_json, refuse_model_code
    from strata.engine.model_files.library_errors import one_line
    from strata.engine.model_files.tokenizer_files import check_tokenizer_files

    folder = packaged or Path(settings.model)
    if (folder / "config.json").is_file():
        refuse_model_code(read_config_json(folder), str(folder / "config.json"))
        check_tokenizer_files(folder)
    told = (
        "cannot be loaded as a sentence-transformers model (expected a folder of one, a name in the local "
        f'Hugging Face cache, or, with the extra "strata-score[encoder]", {" or ".join(PACKAGES)})'
    )
    with one_line(settings.model, told):
        model = SentenceTransformer(
            str(folder) if packaged else settings.model,
            device=settings.device,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    if settings.max_tokens is not None:
        model.max_seq_length = min(settings.max_tokens, model.max_seq_length or settings.max_tokens)
    return model


def _place(model: str) -> str:
    """A folder's full path, so that a search from elsewhere finds it; a name as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _dim(model: Any) -> int:
    """Sentence-transformers 6 renamed the method."""
    ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return int(ask())


def _pooling(model: Any) -> Mapping[str, Any] | None:
    """The settings of the first pooling module, such as its mode; None when the model has none."""
    modules = [module for module in model if type(module).__name__ == "Pooling"]
    return modules[0].get_config_dict() if modules else None


def weights_digest(model: Any) -> str:
    """SHA-256 of all parameters' names, dtypes and bytes: two models in folders of one name differ in it."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encoder_name(model: str) -> str:
    """The folder name for a model's vectors: the last part of its name or path, other characters replaced."""
    last = Path(model).resolve().name if Path(model).is_dir() else model.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-") or "encoder"
