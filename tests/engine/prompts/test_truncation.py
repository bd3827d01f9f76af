"""Truncation: only contexts are cut, just enough, the same for all branches of a question."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from strata.engine.prompts.templates import Template
from strata.engine.types import InputError, Question, RunWarnings

from .small_tokenizers import (
    HEAD_NAMES,
    QUESTIONS,
    TEXTS,
    TOKENIZERS,
    assert_consistent,
    load_word_tokenizer,
    num_tokens,
    render,
)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(question=QUESTIONS, words=st.lists(TEXTS, max_size=60), spare=st.integers(-5, 40), data=st.data())
def test_only_the_context_is_cut_and_just_enough(name, question, words, spare, data):
    head = data.draw(st.sampled_from(HEAD_NAMES))
    question = Question(id="7", prompt=question.prompt, options=question.options, context=" ".join(words))
    bare = Question(id="7", prompt=question.prompt, options=question.options)
    (without,) = render([bare], name, head)
    (whole,) = render([question], name, head)
    limit = max(num_tokens(branch) for branch in without.branches) + spare
    assume(limit > 0)
    warnings = RunWarnings()
    (prompt,) = render([question], name, head, warnings=warnings, window=limit)
    longest = max(num_tokens(branch) for branch in prompt.branches)
    assert (longest > limit) == (warnings.rows == {"longer than the window": ["7"]}) == (spare < 0)
    contexts = set()
    for branch, full in zip(prompt.branches, whole.branches, strict=True):
        assert_consistent(name, branch)
        contexts.add(shown_context(branch.text, full.text, question.context))
    assert len(contexts) == 1
    if max(num_tokens(branch) for branch in whole.branches) <= limit:
        assert contexts == {question.context}
        assert prompt.num_truncated_tokens == 0


def shown_context(text, full_text, context):
    """What is left of the context, when nothing else of the text changed."""
    before, opening, after = full_text.partition("Context: ")
    tail = after.removeprefix(context + "\n\n")
    if not opening or not text.startswith(before + opening):
        assert text == before + tail
        return ""
    left = text.removeprefix(before + opening).removesuffix("\n\n" + tail)
    assert context.startswith(left)
    assert text == f"{before}{opening}{left}\n\n{tail}"
    return left


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("head", HEAD_NAMES)
def test_no_room_is_wasted(name, head):
    context = (
        "The moon pulls on the ocean, and so does the sun, though \u00e0 peine. \U0001f600\U0001f600 " * 40
    )
    questions = [
        Question(id=f"{i}", prompt="What makes the tide turn?", options=("moon", "x" * i), context=context)
        for i in range(20)
    ]
    prompts = render(questions, name, head, max_tokens=300, window=500)
    for prompt in prompts:
        # Two tokens, or the end of a character made of four.
        assert 294 <= max(num_tokens(branch) for branch in prompt.branches) <= 300
        assert prompt.num_truncated_tokens > 100


def test_truncated_tokens_are_counted():
    tokenizer = load_word_tokenizer("Context: Question: Answer: x a b w")
    template = Template(name="t", text="{% if context %}{{ context }} {% endif %}{{ prompt }} {{ option }}")
    question = Question(id="1", prompt="x", options=("a", "b a"), context="w w w w w w")
    for limit, num_cut in ((9, 0), (8, 1), (4, 5), (3, 6), (1, 6)):
        warnings = RunWarnings()
        (prompt,) = render([question], tokenizer, "binary", template, max_tokens=limit, warnings=warnings)
        assert prompt.num_truncated_tokens == num_cut
        assert len(prompt.branches[1].token_ids) == 9 - num_cut
        assert bool(warnings.rows) == (limit == 1)


@pytest.mark.parametrize(
    "shown", ["context", "context | trim", "context | trim | lower", "context | title | lower"]
)
def test_a_context_shown_twice_or_changed_is_cut(shown):
    tokenizer = load_word_tokenizer("x a b w")
    template = Template(name="t", text=f"{{{{ {shown} }}}} x {{{{ {shown} }}}} {{{{ option }}}}")
    question = Question(id="1", prompt="x", options=("a", "b"), context="  w w w w w w ")
    (prompt,) = render([question], tokenizer, "binary", template, max_tokens=7)
    assert prompt.branches[0].text.split() == list("wwxwwa")
    assert prompt.num_truncated_tokens == 4


def test_odd_lengths_are_refused_when_strict():
    question = Question(id="7", prompt="x" * 400, options=("a", "b"), row=3)
    kinds = {"window": "longer than the window", "max_tokens": "longer than --max-tokens"}
    for setting, kind in kinds.items():
        with pytest.raises(InputError, match=f"q.csv, row 3: .*{kind}.*'7'"):
            render([question], warnings=RunWarnings(strict=True), source="q.csv", **{setting: 50})
