"""Prompts: texts tokenize to what is computed, targets are the label or the option, only contexts shrink."""

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from strata.engine.prompts.render import render_prompts
from strata.engine.prompts.templates import BUILT_IN, DEFAULT_TEMPLATES, Template, load_template
from strata.engine.types import InputError, Question, RunWarnings

SHARED_MODELS = Path(__file__).parents[4] / "shared" / "models"
CORPUS = (
    "Below is an instruction. "
    "Question: Answer: yes no. Context: the moon pulls on the ocean. Response:\n\n###"
)


@functools.cache
def load_tokenizer(name):
    """One of the shared folder, or "bytes": byte-level, trimmed spans, `<s>` before and `</s>` behind."""
    if name != "bytes":
        return AutoTokenizer.from_pretrained(SHARED_MODELS / name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS] * 4, trainer)
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), ends])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@functools.cache
def load_word_tokenizer(words):
    """Splits at white space, which it forgets; knows these words only and adds nothing."""
    vocabulary = {word: index for index, word in enumerate(("<unk>", *words.split()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(name != "bytes" and not (SHARED_MODELS / name).exists(), reason="absent"),
    )
    for name in ("bytes", "stories260k", "llama2-tokenizer")
]
HEADS = tuple(DEFAULT_TEMPLATES)
CHARACTERS = st.characters(blacklist_categories=["Cs", "Cc"]) | st.sampled_from("ab {}%\n'\"\u00e9\U0001f600")
TEXTS = st.text(CHARACTERS, max_size=12) | st.sampled_from(["Answer: yes", "{{ option }}", "x ", "\n\n"])
QUESTIONS = st.builds(
    Question,
    id=st.just("7"),
    prompt=TEXTS,
    options=st.lists(TEXTS, min_size=2, max_size=4).map(tuple),
    context=TEXTS,
    row=st.just(3),
)


def render(questions, name="bytes", head="yes-no", template=None, warnings=None, **given_settings):
    bounds = {"max_tokens": None, "window": None} | given_settings
    return render_prompts(
        questions,
        tokenizer=name if not isinstance(name, str) else load_tokenizer(name),
        template=template or load_template(None, head=head),
        head=head,
        warnings=warnings or RunWarnings(),
        **bounds,
    )


def tokenize(name, text):
    ids = load_tokenizer(name)(text).input_ids
    return ids[:-1] if name == "bytes" else ids


def num_tokens(branch):
    return max(len(branch.token_ids), 1 + max((target.position for target in branch.targets), default=0))


def assert_consistent(name, branch):
    """The text tokenizes to what is computed and predicted."""
    predicted = [target for target in branch.targets if target.position == len(branch.token_ids)]
    assert [*branch.token_ids, *(target.token_id for target in predicted)] == tokenize(name, branch.text)
    assert branch.token_ids.dtype == np.int32
    for target in branch.targets[: len(branch.targets) - len(predicted)]:
        assert target.token_id in (None, branch.token_ids[target.position])


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("head", HEADS)
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


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(question=QUESTIONS, words=st.lists(TEXTS, max_size=60), spare=st.integers(-5, 40), data=st.data())
def test_only_the_context_is_cut_and_just_enough(name, question, words, spare, data):
    head = data.draw(st.sampled_from(HEADS))
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
@pytest.mark.parametrize("head", HEADS)
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
    labels = {head: [b.label for b in render([question], head=head)[0].branches] for head in HEADS}
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


def test_odd_lengths_are_refused_when_strict():
    question = Question(id="7", prompt="x" * 400, options=("a", "b"), row=3)
    kinds = {"window": "longer than the window", "max_tokens": "longer than --max-tokens"}
    for setting, kind in kinds.items():
        with pytest.raises(InputError, match=f"q.csv, row 3: .*{kind}.*'7'"):
            render([question], warnings=RunWarnings(strict=True), source="q.csv", **{setting: 50})


def test_settings_that_have_no_effect_are_told():
    warnings = RunWarnings()
    template = Template(name="t", text="{{ option }}:")
    question = Question(id="1", prompt="x", options=("a", "b"), context="c")
    render([question], template=template, debias="rotate", max_tokens=9, window=8, warnings=warnings)
    assert [word for word in ("rotate", "contexts", "window") if any(word in m for m in warnings.messages)]
    assert len(warnings.messages) == 3


@pytest.mark.parametrize(("setting", "value"), [("debias", "pride"), ("head", "other"), ("max_tokens", 0)])
def test_unknown_settings_are_refused(setting, value):
    template = BUILT_IN["yes-no"]
    with pytest.raises(InputError, match=f"{value}"):
        render([], **{"template": template, setting: value})


def test_an_empty_context_leaves_no_trace():
    for head in HEADS:
        (prompt,) = render([Question(id="1", prompt="x", options=("a", "b"))], head=head)
        assert "Context" not in prompt.branches[0].text
        assert "\n\n\n" not in prompt.branches[0].text
