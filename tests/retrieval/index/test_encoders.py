"""Prompts of encoder families, and a tiny random sentence-transformers model against its encode method."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import InputError
from strata.retrieval.index.encode import encode_index
from strata.retrieval.index.encoders import (
    Encoder,
    EncoderSettings,
    SentenceEncoder,
    encoder_name,
    find_prompts,
)
from strata.retrieval.searchers.dense import DenseIndex, load_index_encoder

from ..small_index import make_index, random_texts

BuildModel = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("intfloat/e5-base-v2", "query: ", "passage: "),
        ("models/multilingual-e5-large", "query: ", "passage: "),
        ("BAAI/bge-small-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("BAAI/bge-m3", "", ""),
        ("thenlper/gte-base", "", ""),
        ("Alibaba-NLP/gte-large-en-v1.5", "", ""),
        ("sentence-transformers/all-MiniLM-L6-v2", "", ""),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
    ],
)
def test_families_have_their_prompts(
    name: str, query: str, passage: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = find_prompts(name, {})
    assert (found.query, found.passage) == (query, passage)
    assert not caplog.records


def test_an_instructed_e5_has_a_task_for_queries_only() -> None:
    found = find_prompts("intfloat/multilingual-e5-large-instruct", {})
    assert found.query.startswith("Instruct: ")
    assert found.query.endswith("\nQuery: ")
    assert found.passage == ""


def test_a_models_own_prompts_come_first() -> None:
    found = find_prompts("intfloat/e5-base-v2", {"query": "q> ", "document": "d> "})
    assert (found.query, found.passage) == ("q> ", "d> ")


def test_empty_own_prompts_are_none(caplog: pytest.LogCaptureFixture) -> None:
    assert find_prompts("e5-small", {"query": "", "document": ""}).query == "query: "


def test_an_unknown_family_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = find_prompts("models/mine", {})
    assert (found.query, found.passage) == ("", "")
    assert "models/mine" in caplog.text


@pytest.mark.parametrize(
    ("model", "name"), [("BAAI/bge-m3", "bge-m3"), ("/data/My Model/", "My-Model"), ("..", "encoder")]
)
def test_names_are_fit_for_folders(model: str, name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert encoder_name(model) == (tmp_path.parent.name if model == ".." else name)


@pytest.fixture(scope="module")
def build_model(tmp_path_factory: pytest.TempPathFactory) -> BuildModel:
    """`build_model(name, seed)` -> folder of a random two-layer BERT with mean pooling."""
    transformers = pytest.importorskip("transformers")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    torch = pytest.importorskip("torch")

    def build(name: str, seed: int = 0) -> Path:
        root = tmp_path_factory.mktemp("model")
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "passage", ":"]
        vocabulary = {word: number for number, word in enumerate(words + [f"word{n}" for n in range(40)])}
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
        )
        transformers.BertModel(config).save_pretrained(root / "bert")
        transformers.BertTokenizer(vocab=vocabulary, model_max_length=24).save_pretrained(root / "bert")
        modules = sentence_transformers.sentence_transformer.modules
        body = modules.Transformer(str(root / "bert"))
        model = sentence_transformers.SentenceTransformer(modules=[body, modules.Pooling(16, "mean")])
        model.save(str(root / name))
        return root / name

    return build


def encode_alone(folder: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return np.stack(
        [model.encode(text, normalize_embeddings=True, show_progress_bar=False) for text in texts]
    )


def test_prompts_go_before_the_texts_and_vectors_have_length_one(build_model: BuildModel) -> None:
    folder = build_model("tiny-e5")
    encoder: Encoder = SentenceEncoder(EncoderSettings(model=str(folder)))
    texts = ["word1 word2", "", "word3 " * 100, "слово"]
    queries, passages = encoder.encode_queries(texts), encoder.encode_passages(texts)
    expected = encode_alone(folder, [f"query: {text}" for text in texts])
    np.testing.assert_allclose(queries, expected, atol=1e-6)
    np.testing.assert_allclose(
        passages, encode_alone(folder, [f"passage: {text}" for text in texts]), atol=1e-6
    )
    assert np.abs(queries - passages).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    assert queries.dtype == np.float32
    assert encoder.encode_queries([]).shape == (0, 16)


def test_given_prompts_replace_the_familys(build_model: BuildModel) -> None:
    folder = build_model("tiny-e5")
    settings = EncoderSettings(model=str(folder), query_prompt="", passage_prompt="word9 ")
    encoder = SentenceEncoder(settings)
    np.testing.assert_allclose(encoder.encode_queries(["word1"]), encode_alone(folder, ["word1"]), atol=1e-6)
    np.testing.assert_allclose(
        encoder.encode_passages(["word1"]), encode_alone(folder, ["word9 word1"]), atol=1e-6
    )
    assert encoder.description["prompts"] == {"query": "", "passage": "word9 "}


def test_an_index_is_searched_with_the_model_that_made_it(build_model: BuildModel, tmp_path: Path) -> None:
    texts = random_texts(60)
    store = make_index(tmp_path, texts)
    folder = build_model("tiny-e5")
    encode_index(store.folder, SentenceEncoder(EncoderSettings(model=str(folder), max_tokens=12)))
    loaded = load_index_encoder(store.folder)
    assert loaded.description["max_tokens"] == 12
    found = DenseIndex(store.folder, loaded).search(["word1 word2"], 5)
    vectors = loaded.encode_passages(texts).astype(np.float16).astype(np.float64)
    scores = vectors @ loaded.encode_queries(["word1 word2"])[0].astype(np.float64)
    np.testing.assert_allclose(scores[found.rows[0]], -np.sort(-scores)[:5], atol=2e-3)


def test_the_model_may_have_moved(build_model: BuildModel, tmp_path: Path) -> None:
    store = make_index(tmp_path, random_texts(9))
    made_with = tmp_path / "then" / "tiny-e5"
    shutil.copytree(build_model("tiny-e5"), made_with)
    encode_index(store.folder, SentenceEncoder(EncoderSettings(model=str(made_with))))
    moved = shutil.move(made_with, tmp_path / "tiny-e5")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_index_encoder(store.folder)
    loaded = load_index_encoder(store.folder, None, Path(moved))
    assert len(DenseIndex(store.folder, loaded).search(["word1 word2"], 3).rows[0]) == 3


def test_a_model_of_that_name_with_other_weights_is_refused(build_model: BuildModel, tmp_path: Path) -> None:
    store = make_index(tmp_path, random_texts(9))
    encode_index(store.folder, SentenceEncoder(EncoderSettings(model=str(build_model("tiny-gte", seed=1)))))
    other = SentenceEncoder(EncoderSettings(model=str(build_model("tiny-gte", seed=2))))
    with pytest.raises(InputError, match="made with weights_sha256 = "):
        DenseIndex(store.folder, other)
    same = SentenceEncoder(EncoderSettings(model=str(build_model("tiny-gte", seed=1))))
    assert len(DenseIndex(store.folder, same)) == 9


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(InputError, match=r"nothing: cannot be loaded as a sentence-transformers model"):
        SentenceEncoder(EncoderSettings(model=str(tmp_path / "nothing")))
    with pytest.raises(InputError, match="batch_size: 0"):
        EncoderSettings(model="x", batch_size=0)
