"""`strata index` from the command line: what it prints, leaves and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from strata.retrieval.index.encoders import EncoderSettings
from strata.retrieval.index.manifest import read_manifest
from strata.scripts import index
from strata.scripts.cli import main


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    records = [
        {"id": "a", "text": "Stars shine."},
        {"id": "b", "text": "Stars shine."},
        {"id": "c", "text": ""},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_builds_and_says_so(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["index", "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--near-duplicates", "0.9"]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "3 page(s), 1 chunk(s)" in printed
    assert "1 page(s) without text" in printed
    assert "1 page(s) left out as near-duplicates" in printed
    assert main(flags) == 0
    assert "1 of 1 chunks were there before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--corpus"),
        (["--corpus", "absent.jsonl"], "absent.jsonl not found"),
        (["--corpus", "CORPUS", "--chunk-chars", "0"], "--chunk-chars: 0"),
        (["--corpus", "CORPUS", "--text-field", "body"], "line 1: no field 'body' (--text-field)"),
        (["--corpus", "CORPUS", "--id-field", "text"], "line 2: the page's id 'Stars shine.' is that of"),
        (["--corpus", "CORPUS", "--codes", "int8"], "--codes: "),
        (["--corpus", "CORPUS", "--codes", "int8", "--encoder", "x", "--stored", "int8"], "--stored float16"),
    ],
)
def test_bad_input_is_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    flags = [str(corpus) if flag == "CORPUS" else flag for flag in flags]
    assert main(["index", *flags, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_missing_package_is_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "REQUIRED", ("tantivy", "no_such_package"))
    assert main(["index", "--corpus", str(corpus), "--out", str(tmp_path / "out")]) == 2
    assert "needs no_such_package" in capsys.readouterr().err


def test_an_encoder_is_added_to_a_finished_index(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake:
        name, dim, normalised, description = "fake", 2, False, {"model": "models/fake"}

        def __init__(self, settings: EncoderSettings) -> None:
            assert (settings.model, settings.device, settings.batch_size) == ("models/fake", "cpu", 7)

        def encode_passages(self, texts: list[str]) -> np.ndarray:
            return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    monkeypatch.setattr("strata.retrieval.index.encoders.SentenceEncoder", Fake)
    flags = ["index", "--corpus", str(corpus), "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    assert main([*flags, "--encoder", "models/fake", "--encoder-batch", "7"]) == 0
    assert "embedded by models/fake" in capsys.readouterr().out
    vectors = tmp_path / "out" / "dense" / "fake"
    assert np.load(vectors / "00000.npy").tolist() == [[12, 1], [12, 1]]
    assert set(read_manifest(tmp_path / "out").parts) == {"chunks", "tantivy", "dense/fake"}
    assert main([*flags, "--codes", "binary", "--codes", "int8"]) == 0
    assert "with binary codes for a first pass\nwith int8 codes" in capsys.readouterr().out
    assert np.load(vectors / "binary" / "00000.npy").tolist() == [[0b11000000]] * 2
    assert np.load(vectors / "int8" / "00000.npy").tolist() == [[127, 11]] * 2
    assert {"dense/fake/binary", "dense/fake/int8"} < set(read_manifest(tmp_path / "out").parts)


def test_an_encoder_that_cannot_be_loaded_is_named(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "index",
        "--corpus",
        str(corpus),
        "--out",
        str(tmp_path / "out"),
        "--encoder",
        str(tmp_path / "no"),
    ]
    assert main(flags) == 2
    assert f"{tmp_path / 'no'}: cannot be loaded" in capsys.readouterr().err
