"""Tokenizers from GGUF metadata: transformers' own for the file, and the one that was written into it."""

from __future__ import annotations

import pytest
import transformers as hf

from strata.engine.prompts.tokenizer import JointTokenizer, read_tokenizer
from strata.engine.types import InputError

from ...families import build_tokenizer

pytest.importorskip("gguf")

from ...tiny_gguf import write_tiny_gguf

TEXTS = ("The river carries sand.", "  two  spaces\n\nand a line", "12 345 été 漢字 <s> </s>", "")


def test_it_is_transformers_own(tmp_path):
    path = write_tiny_gguf(tmp_path / "model.gguf")
    ours = read_tokenizer(path)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map


def test_it_is_the_one_that_was_written(tmp_path):
    ours, written = read_tokenizer(write_tiny_gguf(tmp_path / "model.gguf")), build_tokenizer()
    for text in TEXTS:
        assert ours(text)["input_ids"] == written(text)["input_ids"]
    found = [tokens.ids.tolist() for tokens in JointTokenizer(ours).encode(TEXTS)]
    assert found == [written(text)["input_ids"] for text in TEXTS]


def test_any_file_of_a_split_tells_it(tmp_path):
    write_tiny_gguf(tmp_path / "model.gguf", split_tensors=12)
    last = sorted(tmp_path.iterdir())[-1]
    assert read_tokenizer(last)(TEXTS[0])["input_ids"] == build_tokenizer()(TEXTS[0])["input_ids"]


def test_files_beside_it_have_no_say(tmp_path):
    path = write_tiny_gguf(tmp_path / "model.gguf")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"add_bos_token": false, "auto_map": {"AutoTokenizer": "x.Y"}}'
    )
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "sand"}')
    assert read_tokenizer(path)(TEXTS[0])["input_ids"] == build_tokenizer()(TEXTS[0])["input_ids"]


def test_a_chat_template_comes_along(tmp_path):
    template = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
    path = write_tiny_gguf(tmp_path / "model.gguf", metadata={"tokenizer.chat_template": template})
    chat = [{"role": "user", "content": "sand"}]
    assert read_tokenizer(path).apply_chat_template(chat, tokenize=False) == "<s>sand</s>"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"leave_out": ("tokenizer.ggml.tokens",)}, "tokens"),
        ({"metadata": {"tokenizer.ggml.model": "rwkv"}}, "rwkv"),
        ({"metadata": {"tokenizer.ggml.bos_token_id": 4711}}, "list index"),
        ({"metadata": {"tokenizer.ggml.merges": ["sand 漢字"]}}, "out of vocabulary"),
        ({"metadata": {"tokenizer.ggml.merges": ["sand"]}}, "Merges"),
        ({"metadata": {"tokenizer.ggml.tokens": [1, 2]}}, "index"),
    ],
)
def test_metadata_that_make_none_are_one_line(tmp_path, settings, expected):
    path = write_tiny_gguf(tmp_path / "model.gguf", **settings)
    with pytest.raises(
        InputError, match=rf"model\.gguf: its metadata make no tokenizer: .*{expected}"
    ) as caught:
        read_tokenizer(path)
    assert "\n" not in str(caught.value)
