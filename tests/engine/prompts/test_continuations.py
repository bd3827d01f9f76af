"""Continuations: cut by lm-evaluation-harness' rule, spelled out again with the tokenizer's own call."""

import numpy as np
import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from strata.engine.prompts.continuations import encode_pairs, render_continuations
from strata.engine.prompts.templates import Template
from strata.engine.prompts.tokenizer import JointTokenizer
from strata.engine.types import InputError, Question, RunWarnings

from .small_tokenizers import TEXTS, TOKENIZERS, load_tokenizer, render, tokenize

DIGITS = "the moon has 2 sides and 10 names, 2024 of them, 30 days and 9"
STATEMENT = Template(name="t", text="Question: {{ prompt }}\nAnswer: {{ option }}")


def digit_tokenizer(**special):
    """As SmolLM2's: every digit is a token, so that the space before a number is one of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([DIGITS] * 4, trainer)
    if special.get("bos_token"):
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def lm_eval_pair(encode, context, continuation):
    """TemplateLM._encode_pair of lm-evaluation-harness 0.4.13, `encode` being its tok_encode."""
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation = context[-n_spaces:] + continuation
        context = context[:-n_spaces]
    whole = encode(context + continuation)
    return whole, len(encode(context))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(context=TEXTS.filter(str.strip), continuation=TEXTS)
def test_pairs_are_cut_as_lm_eval_cuts_them(name, context, continuation):
    text, boundary = context + continuation, len(context.rstrip())
    (pair,) = encode_pairs([(text, boundary)], JointTokenizer(load_tokenizer(name)))
    whole, num_prefix = lm_eval_pair(lambda part: tokenize(name, part), context, continuation)
    assert list(pair.tokens.ids) == whole
    assert pair.num_prefix == num_prefix


def test_the_lone_space_before_a_digit_is_scored():
    question = Question(id="1", prompt="How many sides has the moon?", options=("2 sides", "the moon", "10"))
    tokenizer = digit_tokenizer()
    (prompt,) = render([question], tokenizer, "loglik", STATEMENT)
    for branch in prompt.branches:
        context = "Question: How many sides has the moon?\nAnswer:"
        whole, num_prefix = lm_eval_pair(
            lambda text: tokenizer(text).input_ids, context, f" {question.options[branch.option]}"
        )
        assert [target.token_id for target in branch.targets] == whole[num_prefix:]
        assert tokenizer.decode(whole[num_prefix:]) == f" {question.options[branch.option]}"
    assert tokenizer.decode(prompt.branches[0].targets[0].token_id) == " "


def test_heads_and_pairs_share_the_rule():
    tokenizer, options = digit_tokenizer(bos_token="<s>"), ("2 sides", "names", "10")
    (prompt,) = render([Question(id="1", prompt="x", options=options)], tokenizer, "loglik", STATEMENT)
    pairs = [("Question: x\nAnswer:", f" {option}") for option in options]
    for branch, one in zip(prompt.branches, render_continuations(pairs, tokenizer, window=None), strict=True):
        np.testing.assert_array_equal(branch.token_ids, one.branches[0].token_ids)
        assert branch.targets == one.branches[0].targets


@pytest.mark.parametrize(
    ("special", "start"),
    [({"bos_token": "<s>"}, [0]), ({"eos_token": "</s>"}, [1])],
)
def test_an_empty_prefix_is_bos_or_eos(special, start):
    tokenizer = digit_tokenizer(**special)
    (prompt,) = render_continuations([("", "2 sides")], tokenizer, window=None)
    ids = tokenizer("2 sides", add_special_tokens=False).input_ids
    assert list(prompt.branches[0].token_ids) == start + ids[:-1]
    assert [target.token_id for target in prompt.branches[0].targets] == ids
    template = Template(name="t", text="{{ option }}")
    question = Question(id="1", prompt="", options=("2 sides", "9"))
    (prompt,) = render([question], tokenizer, "loglik", template)
    assert [target.token_id for target in prompt.branches[0].targets] == ids


def test_an_empty_prefix_without_bos_and_eos_is_refused():
    with pytest.raises(InputError, match="pair 0: the prefix becomes no token"):
        render_continuations([("", "2 sides")], digit_tokenizer(), window=None)


def test_a_text_that_brings_bos_gets_no_second_one():
    tokenizer = digit_tokenizer(bos_token="<s>")
    template = Template(name="t", text="<s>{{ prompt }} {{ option }}")
    warnings = RunWarnings()
    (prompt,) = render([Question(id="1", prompt="x", options=("a", "b"))], tokenizer, "loglik", template)
    assert list(prompt.branches[0].token_ids[:2]) == [0, *tokenizer("x", add_special_tokens=False).input_ids]
    render([Question(id="1", prompt="x", options=("a", "b"))], tokenizer, "loglik", template, warnings)
    assert [message for message in warnings.messages if "BOS" in message and "template t" in message]
    warnings = RunWarnings()
    render([Question(id="1", prompt="x", options=("a", "b"))], tokenizer, "loglik", STATEMENT, warnings)
    assert not warnings.messages
