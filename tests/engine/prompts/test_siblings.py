"""Prompts that list options in no order: what is tokenized, which tokens are siblings, in chats too."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.engine.heads.registry import HEADS
from strata.engine.prompts.siblings.option_list import MARKED_OPTIONS, find_listed
from strata.engine.prompts.templates import Template, load_template
from strata.engine.types import Branch, InputError, Question

from .chat_tokenizers import CHAT_TEMPLATES, chat_tokenizer
from .small_tokenizers import QUESTIONS, TOKENIZERS, load_tokenizer, render, tokenize

QUESTION = Question(id="1", prompt="Which is it?", options=("2 sides", "names", "10"), context="It is 2.")


def listed(head: str, name="bytes", question: Question = QUESTION, **given) -> tuple[Branch, ...]:
    template = load_template(None, head=HEADS[head], lists_options=True, chat=given.get("chat", False))
    (prompt,) = render([question], name, head, template, debias="set", **given)
    return prompt.branches


def parts_of(branch: Branch) -> tuple[list[int], list[list[int]], list[int]]:
    """Ids before the siblings, of each, and behind."""
    ids = branch.token_ids.tolist()
    before, behind = ids[: branch.siblings[0][0]], ids[branch.siblings[-1][1] :]
    return before, [ids[start:end] for start, end in branch.siblings], behind


@settings(deadline=None, max_examples=15)
@given(question=QUESTIONS, turned=st.randoms(use_true_random=False))
@pytest.mark.parametrize("head", ["loglik", "yes-no", "binary"])
def test_equal_sets_of_options_become_equal_tokens(head, question, turned):
    name = "bytes"
    order = list(range(len(question.options)))
    turned.shuffle(order)
    other = replace(question, options=tuple(question.options[index] for index in order))
    found, expected = listed(head, name, other), listed(head, name, question)
    a_option = len(expected) // len(order)
    for place, option in enumerate(order):
        for label in range(a_option):
            one, same = found[a_option * place + label], expected[a_option * option + label]
            assert one.token_ids.tolist() == same.token_ids.tolist()
            assert (one.siblings, one.targets) == (same.siblings, same.targets)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_option_is_tokenized_behind_the_text_before_the_list(name):
    for branch in listed("loglik", name):
        head, _, tail = branch.text.partition("Options:\n")
        before, siblings, behind = parts_of(branch)
        assert before == tokenize(name, head + "Options:\n")
        assert sorted(siblings) == sorted(
            tokenize(name, head + f"Options:\n- {option}\n")[len(before) :] for option in QUESTION.options
        )
        last = [target.token_id for target in branch.targets if target.position == len(branch.token_ids)]
        whole = tokenize(name, head + "Options:\n" + tail[tail.index("Answer:") :])
        assert before + behind + last == whole
        assert branch.targets[0].position > branch.siblings[-1][1]


@pytest.mark.parametrize("head", ["loglik", "yes-no"])
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_chat_lists_them_in_the_message(name, head):
    tokenizer = chat_tokenizer(name)
    for branch in listed(head, tokenizer, chat=True):
        before, siblings, behind = parts_of(branch)
        assert tokenizer.decode(before).endswith("Options:\n")
        assert {tokenizer.decode(ids) for ids in siblings} == {f"- {option}\n" for option in QUESTION.options}
        opening = "Answer:" if head == "loglik" else "Proposed answer:"
        assert tokenizer.decode(behind).startswith(opening)


def test_a_chat_needs_text_behind_the_list():
    text = "{{ prompt }}\n{% for _, text in options %}- {{ text }}\n{% endfor %}\n{{ option }}"
    with pytest.raises(InputError, match="text behind the options"):
        render(
            [QUESTION],
            chat_tokenizer("chatml"),
            "loglik",
            Template(name="t", text=text, lists_options=True),
            debias="set",
            chat=True,
        )


def test_a_token_across_the_beginning_of_the_list_is_refused():
    """A token of the byte-level tokenizer may reach across the place where the list begins."""
    text = "Q {% for _, text in options %}{{ text }};{% endfor %} Answer: {{ option }}"
    merged = load_tokenizer("bytes")("Q yes;").input_ids
    apart = load_tokenizer("bytes")("Q ").input_ids
    assert merged[: len(apart) - 1] != apart[:-1]
    question = replace(QUESTION, options=("yes", "no"))
    with pytest.raises(InputError, match="makes one token of the end of the text before the list"):
        render([question], "bytes", "loglik", Template(name="t", text=text, lists_options=True), debias="set")


@pytest.mark.parametrize(
    ("opening", "closing"), [("- ", "\n"), ("", "\n"), ("* ", ""), ("<o>", "</o>"), ("\n- ", "")]
)
def test_blocks_are_found_whatever_opens_and_closes_them(opening, closing):
    def write(options) -> str:
        return "Before\n" + "".join(opening + text + closing for _, text in options) + " behind"

    options = ("one", "", "three\n- four")
    text = write([("", option) for option in options])
    spans = find_listed(text, write(MARKED_OPTIONS), options, "t")
    assert "".join(text[start:end] for start, end in spans) == "".join(
        opening + option + closing for option in options
    )
    assert [end - start for start, end in spans] == [len(opening + option + closing) for option in options]
