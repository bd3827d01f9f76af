"""Chats: prompts are those of transformers' own apply_chat_template, and the answer follows."""

import pytest

from strata.engine.heads.registry import HEADS
from strata.engine.prompts.templates import BUILT_IN, Template, load_template
from strata.engine.types import InputError, Question, RunWarnings

from .chat_tokenizers import CHAT_TEMPLATES, CHATML, LEADS, NUM_BOS, chat_tokenizer
from .small_tokenizers import render

QUESTION = Question(id="1", prompt="Which is it?", options=("2 sides", "names", "10"), context="It is 2.")
LETTERS_MESSAGE = """\
Answer the question with the letter of the correct option, and nothing else.

Context: It is 2.

Question: Which is it?
A. 2 sides
B. names
C. 10"""
YES_NO_MESSAGE = """\
Answer Yes if the proposed answer to the question is correct, and No if it is not.

Context: It is 2.

Question: Which is it?
Proposed answer: {}"""
LOGLIK_MESSAGE = "Context: It is 2.\n\nQuestion: Which is it?\nAnswer:"

# Head -> what the user says of an option, and the answers that are scored, in order.
EXPECTED = {
    "letters": [(LETTERS_MESSAGE, letter) for letter in "ABC"],
    "yes-no": [
        (YES_NO_MESSAGE.format(option), label) for option in QUESTION.options for label in ("Yes", "No")
    ],
    "loglik": [(LOGLIK_MESSAGE, option) for option in QUESTION.options],
}


def chat(tokenizer, head, question=QUESTION, given=None, **settings):
    template = load_template(given, head=HEADS[head], chat=True)
    (prompt,) = render([question], tokenizer, head, template, chat=True, **settings)
    return prompt


def whole_ids(branch):
    predicted = [t.token_id for t in branch.targets if t.position == len(branch.token_ids)]
    return [*branch.token_ids.tolist(), *predicted]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("head", EXPECTED)
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_prompts_are_transformers_own_token_for_token(name, head, system):
    if name == "inst" and system is not None:
        pytest.skip("this chat template refuses a system message")
    tokenizer = chat_tokenizer(name)
    prompt = chat(tokenizer, head, system=system)
    assert len(prompt.branches) == len(EXPECTED[head])
    for branch, (message, answer) in zip(prompt.branches, EXPECTED[head], strict=True):
        messages = [{"role": "user", "content": message}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        ids = whole_ids(branch)
        assert ids[: len(expected)] == expected
        assert tokenizer.decode(ids[len(expected) :]) == LEADS[name] + answer
        assert ids.count(tokenizer.bos_token_id) == NUM_BOS[name]
        scored = tokenizer.decode([target.token_id for target in branch.targets])
        # A space before the answer is part of its first token, or a target of loglik; a line feed is neither.
        assert scored.lstrip(" ") == answer
        assert branch.targets[-1].position == len(ids) - 1


def test_a_space_before_a_digit_is_part_of_the_answer():
    tokenizer = chat_tokenizer("inst")
    first = chat(tokenizer, "loglik").branches[0]
    assert [tokenizer.decode(target.token_id) for target in first.targets[:2]] == [" ", "2"]


def test_shots_are_turns():
    tokenizer = chat_tokenizer("chatml")
    shot = Question(id="s", prompt="Which letter?", options=("names", "B"), answer=1)
    branch = chat(tokenizer, "letters", shots=(shot,)).branches[0]
    asked = LETTERS_MESSAGE.partition("Context")[0] + "Question: Which letter?\nA. names\nB. B"
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": LETTERS_MESSAGE},
    ]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert whole_ids(branch)[: len(expected)] == expected


def test_a_template_of_the_user_is_the_message_up_to_the_option():
    tokenizer = chat_tokenizer("chatml")
    template = Template(name="t", text="Q: {{ prompt }} A: {{ option }} (end)")
    branch = chat(tokenizer, "loglik", given=template).branches[1]
    assert branch.text == "<|im_start|>user\nQ: Which is it? A:<|im_end|>\n<|im_start|>assistant\nnames"


def test_a_template_that_uses_messages_is_the_chat_template(tmp_path):
    frame = tmp_path / "frame.jinja"
    frame.write_text(CHATML.replace("<|im_start|>", "<turn>"))
    tokenizer = chat_tokenizer(None)
    for head in EXPECTED:
        branch = chat(tokenizer, head, given=str(frame)).branches[0]
        message, answer = EXPECTED[head][0]
        assert branch.text == f"<turn>user\n{message}<|im_end|>\n<turn>assistant\n{answer}"
    with pytest.raises(InputError, match=r"frame\.jinja: uses 'messages', expected --chat"):
        load_template(str(frame), head=HEADS["letters"])
    spoken = tmp_path / "spoken.jinja"
    spoken.write_text("You have messages. {{ option }}")
    assert load_template(str(spoken), head=HEADS["yes-no"], chat=True).frame is None


def test_contexts_alone_are_cut_in_a_chat():
    tokenizer = chat_tokenizer("turns")
    bare = Question(id="1", prompt=QUESTION.prompt, options=QUESTION.options)
    limit = max(len(whole_ids(branch)) for branch in chat(tokenizer, "letters", bare).branches) + 40
    long = Question(id="1", prompt=QUESTION.prompt, options=QUESTION.options, context="names and sides " * 60)
    prompt = chat(tokenizer, "letters", long, max_tokens=limit)
    assert prompt.num_truncated_tokens > 0
    lengths = [len(whole_ids(branch)) for branch in prompt.branches]
    assert limit - 3 <= max(lengths) <= limit
    assert all(
        branch.text.endswith(f"C. 10<end><turn>assistant:\n{letter}")
        for branch, letter in zip(prompt.branches, "ABC", strict=True)
    )


def test_an_empty_option_has_no_targets():
    question = Question(id="1", prompt="Which?", options=("names", ""))
    prompt = chat(chat_tokenizer("chatml"), "loglik", question)
    assert [bool(branch.targets) for branch in prompt.branches] == [True, False]


REFUSED = {
    "no chat template": (None, "letters", {}, "no chat template"),
    "a template that raises": ("inst", "letters", {"system": "Be brief."}, "System role not supported"),
    "a classifier": ("chatml", "binary", {}, "--head letters, yes-no or loglik"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_chat_is_refused_in_one_line(case):
    name, head, settings, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as refused:
        chat(chat_tokenizer(name), head, **settings)
    assert "\n" not in str(refused.value)


def test_a_system_message_needs_a_chat():
    with pytest.raises(InputError, match=r"--system 'Be brief\.': expected --chat"):
        render([QUESTION], system="Be brief.", warnings=RunWarnings())


def test_chats_have_built_in_messages_without_frames():
    for head, name in (("letters", "chat-letters"), ("yes-no", "chat-yes-no"), ("loglik", "statement")):
        assert load_template(None, head=HEADS[head], chat=True) is BUILT_IN[name]
