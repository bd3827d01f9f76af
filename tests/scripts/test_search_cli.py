"""`strata search` as a user meets it: files, tables, exit statuses, and what is said of odd input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from strata.engine.machine.settings import MachineSettings
from strata.engine.questions.question_file import read_questions
from strata.engine.types import RunWarnings
from strata.retrieval.corpus.chunk import searchable_text
from strata.retrieval.index.chunk_store import ChunkStore
from strata.retrieval.index.encode import encode_index, write_codes
from strata.retrieval.index.encoders import EncoderSettings, SentenceEncoder
from strata.scripts.cli import main
from strata.scripts.contexts.rerank_member import MemberScorer, relevance_members

PASSAGES = {
    "moon": (
        "Tides",
        "The moon pulls on the ocean. This pull makes the tide turn twice a day. The sun pulls too.",
    ),
    "bronze": (
        "Bronze",
        "Copper and tin were melted together. The alloy is called bronze. It is harder than copper.",
    ),
    "bee": ("Bees", "A bee finds the field by the light of the sky. It dances to tell the others."),
    "tide": ("", "A tide table lists when the tide turns in a port."),
    "copy": ("", "The moon pulls on the ocean."),
}
QUESTIONS = (
    "id,prompt,A,B,answer\n"
    "q1,What makes the tide turn?,the moon,a stone,A\n"
    "q2,Which metals were melted for bronze?,iron,tin and copper,B\n"
    "q3,Что это?,да,нет,A\n"
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of five passages, in chunks of one or two sentences."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"_id": key, "title": title, "text": text} for key, (title, text) in PASSAGES.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = [
        "--corpus",
        str(folder / "corpus.jsonl"),
        "--out",
        str(folder / "index"),
        "--chunk-chars",
        "60",
    ]
    assert main(["index", *arguments]) == 0
    return folder / "index"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.csv"
    path.write_text(QUESTIONS, encoding="utf-8")
    return path


def run(index: Path, questions: Path, *flags: str | Path) -> int:
    return main(["search", "--index", str(index), "--questions", str(questions), *map(str, flags)])


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_contexts_for_the_questions(index, questions, tmp_path, capsys) -> None:
    out = tmp_path / "with_context.csv"
    assert run(index, questions, "--out", out) == 0
    printed = capsys.readouterr()
    assert "context: 3 contexts of" in printed.out
    assert "no --tokenizer" in printed.err
    assert "no context in column context: 1 question(s), first q3" in printed.err
    found = read_questions(out, warnings=RunWarnings())
    assert [(question.id, question.options, question.answer) for question in found] == [
        ("q1", ("the moon", "a stone"), 0),
        ("q2", ("iron", "tin and copper"), 1),
        ("q3", ("да", "нет"), 0),
    ]
    assert "makes the tide turn" in found[0].context
    assert found[1].context.startswith("Bronze\nCopper and tin")
    assert found[2].context == ""
    record = json.loads((tmp_path / "with_context.search.json").read_text(encoding="utf-8"))
    assert record["contexts"]["context"]["num_empty"] == 1
    assert record["config"]["context_tokens"] == 1000
    assert len(record["warnings"]) == 2


def test_the_record_lists_what_each_question_asked_and_found(index, questions, tmp_path) -> None:
    out = tmp_path / "out.csv"
    assert run(index, questions, "--out", out, "--query", "option", "--context-chunks", "2") == 0
    record = json.loads((tmp_path / "out.search.json").read_text(encoding="utf-8"))
    first, second, third = record["questions"]
    assert [entry["id"] for entry in record["questions"]] == ["q1", "q2", "q3"]
    assert first["queries"] == ["What makes the tide turn? the moon", "What makes the tide turn? a stone"]
    assert second["hits"][0]["title"] == "Bronze"
    scores = [hit["score"] for hit in second["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert set(second["contexts"]["context"]) <= {hit["chunk"] for hit in second["hits"]}
    texts = {chunk.id: chunk.text for chunk in ChunkStore(index)}
    context = read_rows(out)[1]["context"]
    assert all(texts[chunk] in context for chunk in second["contexts"]["context"])
    assert (third["hits"], third["contexts"]) == ([], {"context": []})


def test_budget_counted_by_a_tokenizer(index, questions, tmp_path, checkpoint, capsys) -> None:
    from transformers import AutoTokenizer

    folder, out = checkpoint("llama-gqa"), tmp_path / "out.csv"
    capsys.readouterr()
    assert run(index, questions, "--out", out, "--tokenizer", folder, "--context-tokens", "40") == 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = [
        len(tokenizer(row["context"], add_special_tokens=False)["input_ids"]) for row in read_rows(out)
    ]
    assert 0 < max(lengths) <= 40
    assert "no --tokenizer" not in capsys.readouterr().err


def test_several_contexts_and_one_a_method(index, questions, tmp_path) -> None:
    out = tmp_path / "out.csv"
    flags = ["--method", "bm25", "--method", "tfidf", "--num-contexts", "2", "--context-per-method"]
    assert run(index, questions, "--out", out, "--context-column", "ctx", *flags) == 0
    row = read_rows(out)[0]
    assert list(row)[5:] == ["ctx", "ctx_2", "ctx_bm25", "ctx_tfidf"]
    pieces = [set(row[name].splitlines()) - {"Tides", ""} for name in ("ctx", "ctx_2")]
    assert all(pieces)
    assert not pieces[0] & pieces[1]
    assert set(row["ctx_bm25"].splitlines()) - {"Tides", ""} == pieces[0] | pieces[1]


def test_two_stages_and_order_by_edit_distance(index, questions, tmp_path) -> None:
    out = tmp_path / "out.csv"
    flags = ["--pages", "1", "--order", "edit-distance", "--order-top", "1", "--query", "prompt"]
    assert run(index, questions, "--out", out, *flags) == 0
    first, second, third = read_rows(out)[1]["context"].split("\n")[1:]
    # Of one page's sentences the best is first; ordering one changes nothing, and drops nothing.
    assert first == "Copper and tin were melted together."
    assert {second, third} == {"The alloy is called bronze.", "It is harder than copper."}


def test_reranking_by_a_member(index, questions, tmp_path, checkpoint, fixed_rates) -> None:
    plain, reranked = tmp_path / "plain.csv", tmp_path / "reranked.csv"
    assert run(index, questions, "--out", plain) == 0
    model = checkpoint("llama-gqa")
    flags = ["--member", model, "--devices", "cpu", "--context-chunks", "1"]
    assert run(index, questions, "--out", reranked, *flags) == 0

    found = read_rows(plain)[0]["context"]
    texts = [searchable_text(chunk) for chunk in ChunkStore(index) if chunk.text in found]
    assert len(texts) > 2
    query = "What makes the tide turn? the moon a stone"
    with MemberScorer(relevance_members(model), MachineSettings(devices="cpu")) as scorer:
        scores = scorer([query], [texts])[0]
    assert read_rows(reranked)[0]["context"] == texts[int(np.argmax(scores))]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained BERT, which sentence-transformers takes for an encoder with mean pooling."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["the", "moon", "tide", "bee", "tin", "copper", "metals", "turn"],
    ]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(
        folder / "bert"
    )
    return folder / "bert"


def test_dense_search_with_a_first_pass(index, questions, tmp_path, encoder, capsys) -> None:
    copied = tmp_path / "index"
    shutil.copytree(index, copied)
    encode_index(copied, SentenceEncoder(EncoderSettings(model=str(encoder))))
    out, flags = tmp_path / "out.csv", ["--devices", "cpu", "--method", "dense"]
    assert run(copied, questions, "--out", out, *flags) == 0
    exact = read_rows(out)
    # Every chunk has a vector, so a question in another script has a context as well.
    assert all(row["context"] for row in exact)
    capsys.readouterr()
    assert run(copied, questions, "--out", out, *flags, "--first-pass", "int8") == 2
    assert "expected what `strata index` with the flags it was made with and --codes int8 adds" in (
        capsys.readouterr().err
    )
    write_codes(copied, "bert", "int8")
    assert run(copied, questions, "--out", out, *flags, "--first-pass", "int8") == 0
    assert read_rows(out) == exact
    assert "recall@100 of the int8 first pass: 1.0000 (3 queries)" in capsys.readouterr().out
    record = json.loads((tmp_path / "out.search.json").read_text(encoding="utf-8"))
    assert record["first_pass_recall"] == 1.0


def test_measures_on_judged_queries(index, tmp_path, capsys) -> None:
    queries, qrels, table = tmp_path / "queries.jsonl", tmp_path / "qrels.tsv", tmp_path / "per_query.csv"
    queries.write_text(
        '{"_id": "1", "text": "tin and copper"}\n{"_id": "2", "text": "bee dances"}\n', encoding="utf-8"
    )
    qrels.write_text("query-id\tcorpus-id\tscore\n1\tbronze\t1\n2\tmoon\t1\n", encoding="utf-8")
    capsys.readouterr()
    assert (
        run(index, queries, "--qrels", qrels, "--method", "bm25", "--method", "bm25s", "--per-query", table)
        == 0
    )
    printed = capsys.readouterr().out
    assert "2 judged queries" in printed
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line.count("|") == 6][1:] == [
        "bm25",
        "bm25s",
        "scores",
    ]
    rows = read_rows(table)
    assert [(row["query"], float(row["bm25 nDCG@10"])) for row in rows] == [("1", 1.0), ("2", 0.0)]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--out: missing"),
        (["--out", "x.txt"], "--out: x.txt"),
        (["--qrels", "none.tsv"], "none.tsv: cannot be read"),
        (["--out", "x.csv", "--tokenizer", "nowhere"], "nowhere: no tokenizer"),
        (["--out", "x.csv", "--cross-encoder", "nowhere"], "nowhere: no config.json"),
        (["--out", "x.csv", "--ray", "auto"], "--ray: needs --method dense"),
    ],
)
def test_bad_flags_end_with_status_2(index, questions, capsys, flags, told) -> None:
    capsys.readouterr()
    assert run(index, questions, *flags) == 2
    assert told in capsys.readouterr().err


def test_no_index_and_queries_without_options_are_refused(index, questions, tmp_path, capsys) -> None:
    capsys.readouterr()
    assert run(tmp_path / "none", questions, "--out", tmp_path / "out.csv") == 2
    assert "manifest.json: not found" in capsys.readouterr().err
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"_id": "1", "text": "bee"}\n', encoding="utf-8")
    assert run(index, queries, "--out", tmp_path / "out.csv") == 2
    assert "holds queries" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_help_shows_an_example(capsys) -> None:
    assert main(["search", "--help"]) == 0
    assert "strata search --index wiki-index" in " ".join(capsys.readouterr().out.split())
