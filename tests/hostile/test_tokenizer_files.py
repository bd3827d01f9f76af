"""Tokenizer files with one thing changed: refused in one line, when read or when they tokenize."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strata.engine.encoders.encoder import measure_encoder, read_encoder_config
from strata.engine.encoders.rows import EncoderTokenizer
from strata.engine.model_files.library_errors import one_line
from strata.engine.prompts.continuations import render_continuations
from strata.engine.prompts.tokenizer import JointTokenizer, read_tokenizer
from strata.engine.types import InputError, Question, RunWarnings

from ..engine.encoders.tiny_encoder import build_encoder
from .changed_files import DEEP_LIST, change_json, copy_folder, refusal

TEXT = "The river carries sand from the hills to the sea, " + "a" * 40 + "!"
SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
UNMATCHED = SLOW | {"pattern": {"Regex": "(a"}}
MISSING_TOKEN = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<none>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
        {"SpecialToken": {"id": "<none>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ],
    "special_tokens": {},
}


def of_model(**changes: object) -> Callable[[Any], Any]:
    return lambda content: content | {"model": content["model"] | changes}


def with_entry(name: str, token_id: int) -> Callable[[Any], Any]:
    return lambda content: of_model(vocab=content["model"]["vocab"] | {name: token_id})(content)


def without(key: str) -> Callable[[Any], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


TOKENIZER_JSON: dict[str, tuple[dict[str, Any] | Callable[[Any], Any], str]] = {
    "list": (lambda content: [content], "holds a list"),
    "null": (lambda content: None, "holds a NoneType"),
    "no_model": (without("model"), "model"),
    "unknown_model": ({"model": {"type": "Evil"}}, "transformers cannot read the tokenizer"),
    "vocab_neg": (with_entry("x", -5), "model.vocab.x"),
    "vocab_huge_id": (with_entry("x", 4_000_000_000), "model.vocab.x"),
    "vocab_float_id": (with_entry("x", 1.5), "model.vocab.x"),
    "vocab_int": (of_model(vocab=5), "model.vocab"),
    "added_huge_id": ({"added_tokens": [{"id": 4_000_000_000, "content": "x"}]}, "added_tokens.0.id"),
    "vocab_empty": (of_model(type="WordLevel", vocab={}, unk_token="<unk>"), "[UNK]"),
    "bad_merges": (of_model(merges=["a"]), "transformers cannot read the tokenizer"),
    "redos": ({"pre_tokenizer": SLOW}, "cannot tokenize"),
    "bad_regex": ({"pre_tokenizer": UNMATCHED}, "transformers cannot read the tokenizer"),
    "post_missing": ({"post_processor": MISSING_TOKEN}, "tokenize"),
}

TOKENIZER_CONFIG: dict[str, tuple[dict[str, Any] | Callable[[Any], Any], str]] = {
    "list": (lambda content: [content], "holds a list"),
    "null": (lambda content: None, "holds a NoneType"),
    "class_int": ({"tokenizer_class": 5}, "tokenizer_class"),
    "bos_int": ({"bos_token": 5}, "bos_token"),
    "bos_dict": ({"bos_token": {"x": 1}}, "bos_token"),
    "added_weird": ({"added_tokens_decoder": {"0": 5}}, "added_tokens_decoder"),
    "added_huge_id": ({"added_tokens_decoder": {"4000000000": {"content": "x"}}}, "added_tokens_decoder"),
    "added_text_id": ({"added_tokens_decoder": {"x": {"content": "x"}}}, "added_tokens_decoder"),
    "extra_special": ({"extra_special_tokens": {"a": {"b": 1}}}, "extra_special_tokens.a"),
    "max_length_str": ({"model_max_length": "x"}, "model_max_length"),
    "code": (
        {"tokenizer_class": "XTokenizer", "auto_map": {"AutoTokenizer": ["x.XTokenizer", None]}},
        "auto_map",
    ),
    "code_list": ({"tokenizer_class": "XTokenizer", "auto_map": ["x.XTokenizer", None]}, "auto_map"),
}


def tokenize(folder: Path) -> None:
    JointTokenizer(read_tokenizer(folder)).encode([TEXT])


@pytest.fixture
def model(checkpoint, tmp_path) -> Path:
    return copy_folder(checkpoint("llama-gqa"), tmp_path / "model")


@pytest.mark.parametrize("case", TOKENIZER_JSON)
def test_a_tokenizer_json_of(case: str, model: Path) -> None:
    change, told = TOKENIZER_JSON[case]
    change_json(model / "tokenizer.json", change)
    refusal(lambda: tokenize(model), str(model), told)


def test_a_tokenizer_json_that_is_deep(model: Path) -> None:
    (model / "tokenizer.json").write_text(DEEP_LIST)
    refusal(lambda: tokenize(model), "tokenizer.json", "nested too deeply")


@pytest.mark.parametrize("case", TOKENIZER_CONFIG)
def test_a_tokenizer_config_of(case: str, model: Path) -> None:
    change, told = TOKENIZER_CONFIG[case]
    change_json(model / "tokenizer_config.json", change)
    refusal(lambda: tokenize(model), "tokenizer_config.json", told)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("special_tokens_map.json", '{"bos_token": 5}', "bos_token"),
        ("special_tokens_map.json", "[]", "holds a list"),
        ("added_tokens.json", '{"x": 4000000000}', "tokens.x"),
        ("vocab.json", '{"x": -1}', "tokens.x"),
        ("config.json", '{"model_type": ["x"]}', "model_type"),
    ],
)
def test_another_file_of(name: str, text: str, told: str, model: Path) -> None:
    (model / name).write_text(text)
    refusal(lambda: tokenize(model), name, told)


def test_a_class_of_transformers_is_used_whatever_code_lies_beside_it(model: Path, tmp_path: Path) -> None:
    (model / "tokenization_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    code = {"AutoTokenizer": ["tokenization_x.X", None]}
    change_json(model / "tokenizer_config.json", {"auto_map": code})
    tokenize(model)
    change_json(model / "tokenizer_config.json", {"tokenizer_class": "X"})
    refusal(lambda: tokenize(model), "auto_map", "code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("case", ["redos", "post_missing"])
def test_pairs_and_rows_of_encoders_that_cannot_be_tokenized(case: str, model: Path, tmp_path: Path) -> None:
    change, told = TOKENIZER_JSON[case]
    change_json(model / "tokenizer.json", change)
    refusal(
        lambda: render_continuations([(TEXT, " b")], read_tokenizer(model), window=None),
        "tokenizer.json",
        told,
    )

    encoder = build_encoder("bert", tmp_path / "encoder")
    change_json(encoder / "tokenizer.json", change)
    question = Question(id="1", prompt=TEXT, options=("a", "b"))

    def encode() -> None:
        shape = measure_encoder(read_encoder_config(encoder))
        EncoderTokenizer(encoder, shape, None, RunWarnings()).encode([question])

    refusal(encode, "tokenizer.json", told)


@pytest.mark.parametrize("case", ["redos", "post_missing"])
def test_a_panic_says_nothing_of_its_own(case: str, model: Path, capfd: pytest.CaptureFixture) -> None:
    change_json(model / "tokenizer.json", TOKENIZER_JSON[case][0])
    capfd.readouterr()
    refusal(lambda: tokenize(model), str(model))
    assert "panicked" not in capfd.readouterr().err


def test_what_a_library_says_without_an_error_is_shown(capfd: pytest.CaptureFixture) -> None:
    with one_line("x", "y"):
        os.write(2, b"from the library\n")
        print("from Python", file=sys.stderr)
    assert "from the library" in capfd.readouterr().err

    def fail() -> None:
        os.write(2, b"noise\n")
        raise ValueError("no")

    with pytest.raises(InputError, match="x: y: no"), one_line("x", "y"):
        fail()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_other_threads_do_not_wait_for_stderr() -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with one_line("x", "y"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(10)
    with one_line("x", "y"):
        pass
    leave.set()
    thread.join()
