"""Tokens at the edges of prompts: one BOS whatever the template brings; options that the tokenizer loses."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from strata.engine.prompts.templates import Template
from strata.engine.types import InputError, Question, RunWarnings

from .small_tokenizers import HEAD_NAMES, load_word_tokenizer, render

WORDS = "what is it sun snow Question: Answer: yes no A. B. A B C D Below ."
CHAT = "<bos><turn>user\n{{ prompt }}\n{% for l, t in options %}{{ l }}. {{ t }}\n{% endfor %}<turn>model\n"


def build_chat_tokenizer(start="<bos>"):
    """A byte-level tokenizer that puts `start` before a text, as Gemma's does, and knows it inside a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: index for index, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<bos>"), AddedToken("<turn>")])
    bos = ("<bos>", tokenizer.token_to_id("<bos>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A".strip(), special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>")


ASKED = [Question(id="1", prompt="Why?", options=("the moon", "sand"), context="It is so. " * 30, row=1)]


@pytest.mark.parametrize("max_tokens", [None, 80])
def test_text_gemma_double_bos(max_tokens):
    """The ids are those of transformers' apply_chat_template: the text's own tokens, nothing added."""
    tokenizer, warnings = build_chat_tokenizer(), RunWarnings()
    template = Template(name="t.txt", text="{{ context }}".join(CHAT.split("\n", 1)), lists_options=True)
    (prompt,) = render(
        ASKED, tokenizer, "letters", template=template, warnings=warnings, max_tokens=max_tokens
    )
    for branch in prompt.branches:
        whole = tokenizer(branch.text, add_special_tokens=False).input_ids
        assert list(branch.token_ids) == whole[:-1]
        assert list(branch.token_ids).count(tokenizer.bos_token_id) == 1
        assert branch.targets[0].token_id == whole[-1]
        assert max_tokens is None or len(whole) <= max_tokens
    assert warnings.messages == [
        "template t.txt: it brings the tokenizer's BOS token, which is not added again"
    ]


def test_a_template_without_a_bos_gets_one():
    warnings = RunWarnings()
    (prompt,) = render(ASKED, build_chat_tokenizer(), "loglik", warnings=warnings)
    bos = build_chat_tokenizer().bos_token_id
    assert all(list(branch.token_ids).count(bos) == 1 for branch in prompt.branches)
    assert warnings.messages == []


def test_a_tokenizer_that_adds_none_leaves_the_template_its_own():
    tokenizer, warnings = build_chat_tokenizer(start=""), RunWarnings()
    template = Template(name="t", text=CHAT + "{{ context }}")
    (prompt,) = render(ASKED, tokenizer, "letters", template=template, warnings=warnings)
    assert list(prompt.branches[0].token_ids)[:2] == tokenizer("<bos><turn>").input_ids
    assert warnings.messages == []


def test_a_bos_inside_a_text_is_told():
    warnings = RunWarnings()
    render(
        [Question(id="1", prompt="What is <bos>?", options=("a", "b"))],
        build_chat_tokenizer(),
        warnings=warnings,
    )
    assert len(warnings.messages) == 1
    assert "more than once" in warnings.messages[0]


LISTING = "what {% for letter, text in options %}{{ letter }}. {{ text }} {% endfor %}"
SHOWING = "what {{ prompt }} {{ option }} . "


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_text_option_lost_unk(head):
    """Words that a word tokenizer does not know are unknown tokens, as its vocabulary says."""
    tokenizer, warnings = load_word_tokenizer(WORDS), RunWarnings()
    template = Template(name="t", text=LISTING if head == "letters" else SHOWING)
    asked = [
        Question(id="lost", prompt="is it", options=("sun", "\u2603", "\u5317\u4eac"), row=1),
        Question(id="known", prompt="is it", options=("sun", "snow \u2603"), row=2),
    ]
    render(asked, tokenizer, head, template=template, warnings=warnings)
    assert warnings.rows == {"option of unknown tokens only": ["lost"]}
    strict = RunWarnings(strict=True)
    with pytest.raises(InputError, match=r"q.csv, row 1, option B: option of unknown tokens only .*'lost'"):
        render(asked, tokenizer, head, template=template, warnings=strict, source="q.csv")


def test_an_option_that_becomes_no_token():
    tokenizer, warnings = load_word_tokenizer(WORDS), RunWarnings()
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Replace("\u200b", "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    template = Template(name="t", text="what {{ prompt }} {{ option }}")
    asked = [Question(id="gone", prompt="is it", options=("sun", "\u200b"), row=1)]
    render(asked, tokenizer, "loglik", template=template, warnings=warnings)
    assert warnings.rows == {"option of no tokens": ["gone"]}
