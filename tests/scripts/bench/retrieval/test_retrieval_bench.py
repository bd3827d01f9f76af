"""The retrieval bench on sets of a few documents: its keys, and figures that can be told by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import InputError
from strata.retrieval.search_config import SearchConfig
from strata.scripts.bench.configs import RetrievalBenchConfig
from strata.scripts.bench.retrieval import retrieval

DOCUMENTS = {"a": "cats purr loudly", "b": "dogs bark at night", "c": "fish swim", "d": "birds sing at night"}


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "scifact" / "qrels").mkdir(parents=True)
    write_jsonl(
        folder / "scifact" / "corpus.jsonl",
        [{"_id": key, "title": "", "text": text} for key, text in DOCUMENTS.items()],
    )
    queries = {"1": "purr", "2": "swim", "3": "never judged"}
    write_jsonl(
        folder / "scifact" / "queries.jsonl", [{"_id": key, "text": text} for key, text in queries.items()]
    )
    (folder / "scifact" / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\n1\ta\t1\n2\tb\t1\n", encoding="utf-8"
    )
    write_jsonl(
        folder / "wiki_passages.jsonl", [{"_id": key, "text": text} for key, text in DOCUMENTS.items()]
    )
    with (folder / "kaggle200.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "context", "A", "B", "answer"])
        writer.writerow(["0", "Who does purr?", DOCUMENTS["a"], "cats", "dogs", "A"])
        writer.writerow(["1", "Who sings at night?", DOCUMENTS["b"], "birds", "fish", "A"])
        writer.writerow(["2", "Whose passage is elsewhere?", "not a passage", "x", "y", "A"])
    return folder


def test_keys_and_figures(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(retrieval, "RESULTS", tmp_path / "results")
    config = RetrievalBenchConfig(data=data, folder=tmp_path / "indexes")
    assert retrieval.run_retrieval_bench(config) == 0
    found = json.loads((tmp_path / "results" / "retrieval.jsonl").read_text(encoding="ascii"))
    # Query 1 finds its document first, query 2 finds another one only; the unjudged one does not count.
    assert (found["ndcg10_bm25"], found["recall100_bm25"]) == (0.5, 0.5)
    assert {"ndcg10_bm25s", "ndcg10_tfidf", "ndcg10_rrf"} <= set(found)
    assert found["num_own_passage_kaggle200"] == 2
    # Question 1 is about birds; what it calls its passage shares one word with it and comes second.
    assert (found["own_passage_at_1_kaggle200"], found["own_passage_at_5_kaggle200"]) == (0.5, 1.0)
    assert not any("stem1k" in key for key in found)
    assert str(tmp_path) not in json.dumps(found)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


class WordEncoder:
    """A dimension a word of the documents; unknown words are nothing."""

    name, normalised, description = "words", True, {"model": "words"}
    words = sorted({word for text in DOCUMENTS.values() for word in text.split()})
    dim = len(words)

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        counts = [[float(text.split().count(word)) for word in self.words] for text in texts]
        vectors = np.array(counts, dtype=np.float32).reshape(len(texts), self.dim)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)

    encode_queries = encode_passages


def test_keys_with_an_encoder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(retrieval, "load_encoder", lambda config: WordEncoder())
    config = RetrievalBenchConfig(data=data, folder=tmp_path / "indexes", encoder="models/words")
    assert retrieval.run_retrieval_bench(config) == 0
    found = json.loads((tmp_path / "results" / "retrieval.jsonl").read_text(encoding="ascii"))
    default = SearchConfig(index=tmp_path, questions=tmp_path).fusion
    for method in ("bm25", "bm25s", "tfidf", "dense", "rrf", "scores", "rerank", "rerank_alone"):
        assert 0.5 <= found[f"ndcg10_{method}"] <= 1.0
        assert found[f"own_passage_at_10_kaggle200_{method}"] == 1.0
    # Dense search ranks every document, so the judged one that shares no word with its query is found too.
    assert found["recall100_dense"] == 1.0
    assert found["own_passage_at_1_kaggle200"] == found[f"own_passage_at_1_kaggle200_{default}"]
    # With all four documents among the candidates, a first pass can miss none.
    for kind in ("int8", "binary"):
        for oversample in (2, 4, 8, 16):
            assert found[f"first_pass_recall_{kind}_{oversample}x"] == 1.0
            assert found[f"first_pass_recall_{kind}_{oversample}x_passages"] == 1.0
    assert found["encode_chunks_per_s"] > 0
    assert found["config"]["reranker"] == "nearest sentence by words"


def test_a_folder_without_a_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--data: .* expected scifact/"):
        retrieval.run_retrieval_bench(RetrievalBenchConfig(data=tmp_path))


def test_known_passage_share() -> None:
    pages = [["a", "b"], ["b", "a"], []]
    assert retrieval.known_passage_share(pages, ["a", "a", "a"], 1) == pytest.approx(1 / 3)
    assert retrieval.known_passage_share(pages, ["a", "a", "a"], 2) == pytest.approx(2 / 3)
