"""The retrieval bench on sets of a few documents: its keys, and figures that can be told by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from strata.scripts.bench import retrieval
from strata.scripts.bench.configs import RetrievalBenchConfig

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


def test_own_passage_share() -> None:
    pages = [["a", "b"], ["b", "a"], []]
    assert retrieval.own_passage_share(pages, ["a", "a", "a"], 1) == pytest.approx(1 / 3)
    assert retrieval.own_passage_share(pages, ["a", "a", "a"], 2) == pytest.approx(2 / 3)
