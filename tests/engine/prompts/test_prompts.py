"""Prompts: texts tokenize to what is computed, and the targets are the label or the option."""

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from strata.engine.prompts.templates import Template
from strata.engine.types import InputError, Question, RunWarnings

from .small_tokenizers import (
    HEAD_NAMES,
    QUESTIONS,
    SHARED_MODELS,
    TOKENIZERS,
    assert_consistent,
    load_tokenizer,
    load_word_tokenizer,
    render,
    tokenize,
)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("head", HEAD_NAMES)
@settings(deadline=None, max_examples=12)
@given(question=QUESTIONS)
def test_texts_tokenize_to_their_branches(name, head, question):
    (prompt,) = render([question], name, head, debias="rotate")
    assert prompt.num_truncated_tokens == 0
    for branch in prompt.branches:
        assert_consistent(name, branch)
        assert question.prompt in branch.text
        assert question.options[branch.option] in branch.text
        if branch.label is not None:
            assert branch.text.endswith(branch.label)
            assert branch.targets[-1].position == len(branch.token_ids)


@pytest.mark.parametrize("num_options", [2, 3, 5])
def test_rotations_show_each_option_once_in_each_slot(num_options):
    options = tuple(f"option {i}" for i in range(num_options))
    (prompt,) = render([Question(id="1", prompt="x", options=options)], head="letters", debias="rotate")
    assert len(prompt.branches) == num_options**2
    assert len({(branch.option, branch.label) for branch in prompt.branches}) == num_options**2
    for branch in prompt.branches:
        assert branch.order == tuple((branch.order[0] + i) % num_options for i in range(num_options))
        assert branch.option == branch.order["ABCDE".index(branch.label)]
        assert f"\n{branch.label}. {options[branch.option]}\n" in branch.text


def test_branches_a_head():
    question = Question(id="1", prompt="x", options=("a", "b"))
    labels = {head: [b.label for b in render([question], head=head)[0].branches] for head in HEAD_NAMES}
    assert labels == {
        "binary": [None] * 2,
        "contrast": [None] * 2,
        "loglik": [None] * 2,
        "yes-no": ["yes", "no"] * 2,
        "letters": ["A", "B"],
    }
    (prompt,) = render([question], head="binary")
    for branch in prompt.branches:
        (target,) = branch.targets
        assert (target.position, target.token_id) == (len(branch.token_ids) - 1, None)
        assert branch.order == ()


@pytest.mark.skipif(not (SHARED_MODELS / "llama2-tokenizer").exists(), reason="absent")
def test_labels_are_single_tokens_for_llama2():
    question = Question(id="1", prompt="x", options=("a", "b", "c"))
    for head in ("yes-no", "letters"):
        (prompt,) = render([question], "llama2-tokenizer", head)
        tokenizer = load_tokenizer("llama2-tokenizer")
        for branch in prompt.branches:
            assert tokenizer.convert_ids_to_tokens([t.token_id for t in branch.targets]) == [branch.label]
            assert tokenizer.convert_ids_to_tokens(int(branch.token_ids[-1])) == "<0x0A>"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_loglik_targets_are_the_option(name):
    option = "Answer: \u00e9t\u00e9 \U0001f600"
    question = Question(id="1", prompt="Answer: x", options=(option, ""))
    template = Template(name="t", text="{{ prompt }} ({{ option }}) {{ prompt }}")
    tokenizer = load_tokenizer(name)
    (prompt,) = render([question], name, "loglik", template)
    branch, empty = prompt.branches
    assert tokenizer.decode([target.token_id for target in branch.targets]).strip("()") == option
    assert [target.position for target in branch.targets] == list(
        range(branch.targets[0].position, len(branch.token_ids) + 1)
    )
    assert branch.text == f"Answer: x ({option}) Answer: x"
    assert tokenize(name, branch.text)[: len(branch.token_ids)] == list(branch.token_ids)
    assert empty.targets == ()
    assert list(empty.token_ids) == tokenize(name, empty.text)


def test_tokens_across_the_boundary_count():
    # The span of the token that holds the line feed and the label must not be trimmed to end before the
    # label.
    tokenizer = Tokenizer(models.BPE({"a": 0, "\u010a": 1, "a\u010a": 2, "b": 3}, [("a", "\u010a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    template = Template(name="t", text="a{{ option }}a", labels=("\nb", "\nbb"))
    (prompt,) = render([Question(id="1", prompt="", options=("b", "b"))], fast, "yes-no", template)
    assert [[target.token_id for target in b.targets] for b in prompt.branches[:2]] == [[2, 3], [2, 3, 3]]
    assert list(prompt.branches[0].token_ids) == [0, 3, 2]


def test_a_first_token_without_predecessor_is_not_scored():
    tokenizer = load_word_tokenizer("a b")
    template = Template(name="t", text="{{ option }}")
    warnings = RunWarnings()
    question = Question(id="1", prompt="", options=("a b", "b"))
    (prompt,) = render([question], tokenizer, "loglik", template, warnings=warnings)
    assert [[target.position for target in branch.targets] for branch in prompt.branches] == [[1], []]
    assert len(warnings.messages) == 1


@pytest.mark.parametrize(
    ("words", "labels", "message"),
    [
        ("no", ("yes", "no"), "label 'yes'.*unknown"),
        ("yes no", (" ", "no"), "label ' '.*no token"),
        ("yes no", ("yes", " yes"), "labels 'yes' and ' yes'.*same tokens"),
        ("yes", ("yes", "no"), "label 'no'.*unknown"),
    ],
)
def test_labels_without_tokens_of_their_own(words, labels, message):
    template = Template(name="t", text="{{ option }} ", labels=labels)
    question = Question(id="1", prompt="x", options=("a", "b"))
    with pytest.raises(InputError, match=message):
        render([question], load_word_tokenizer(words), "yes-no", template)


def test_a_label_that_a_normalizer_removes():
    tokenizer = load_word_tokenizer("a b").backend_tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.normalizer = normalizers.Replace("yes", "")
    fast = PreTrainedTokenizerFast(tokenizer_object=copy, unk_token="<unk>")
    with pytest.raises(InputError, match="label 'yes'"):
        render([Question(id="1", prompt="x", options=("a", "b"))], fast)


def test_settings_that_have_no_effect_are_told():
    warnings = RunWarnings()
    template = Template(name="t", text="{{ option }}:")
    question = Question(id="1", prompt="x", options=("a", "b"), context="c")
    render([question], template=template, debias="rotate", max_tokens=9, window=8, warnings=warnings)
    assert [word for word in ("rotate", "contexts", "window") if any(word in m for m in warnings.messages)]
    assert len(warnings.messages) == 3


@pytest.mark.parametrize(("setting", "value"), [("debias", "both"), ("max_tokens", 0)])
def test_unknown_settings_are_refused(setting, value):
    with pytest.raises(InputError, match=f"{value}"):
        render([], **{setting: value})


def test_an_empty_context_leaves_no_trace():
    for head in HEAD_NAMES:
        (prompt,) = render([Question(id="1", prompt="x", options=("a", "b"))], head=head)
        assert "Context" not in prompt.branches[0].text
        assert "\n\n\n" not in prompt.branches[0].text
