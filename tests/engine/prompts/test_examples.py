"""Few-shot examples in plain prompts: what is shown, in which order, and to whom."""

import pytest

from strata.engine.types import InputError, Question

from .small_tokenizers import TOKENIZERS, assert_consistent, load_tokenizer, render, tokenize

POOL = tuple(
    Question(
        id=f"s{n}", prompt=f"Which is {n}?", options=("moon", "tide", f"n{n}"), answer=n % 3, context=context
    )
    for n, context in enumerate(["It shines.", "", ""])
)
ASKED = Question(id="1", prompt="What turns?", options=("a", "b"), context="The moon pulls.")


def texts(head, question=ASKED, **given):
    (prompt,) = render([question], head=head, shots=POOL, **given)
    return [branch.text for branch in prompt.branches]


def test_log_likelihoods_follow_examples_as_in_lm_eval():
    shown = (
        "Context: It shines.\n\nQuestion: Which is 0?\nAnswer: moon\n\n"
        "Question: Which is 1?\nAnswer: tide\n\n"
    )
    asked = "Context: The moon pulls.\n\nQuestion: What turns?\nAnswer: "
    assert texts("loglik", num_shots=2) == [shown + asked + option for option in ASKED.options]


def test_letters_follow_examples_with_their_letters():
    first, second = texts("letters", num_shots=2)
    (bare,) = render([ASKED], head="letters")
    for text, branch in zip((first, second), bare.branches, strict=True):
        before, found, after = text.partition(branch.text)
        assert (found, after) == (branch.text, "")
        assert before.count("### Response:\n") == 2
        assert before.endswith("A. moon\nB. tide\nC. n1\n\n### Response:\nB\n\n")


def test_every_second_example_of_yes_and_no_says_no():
    shown = texts("yes-no")[0].split("### Response:\n")
    assert [part.partition("\n")[0] for part in shown[1:]] == ["yes", "no", "yes", "yes"]
    assert "Proposed answer: moon\n" in shown[0]
    assert "Proposed answer: n1\n" in shown[1]
    assert "Proposed answer: n2\n" in shown[2]


@pytest.mark.parametrize("head", ["letters", "loglik", "yes-no"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_and_targets_are_those_of_the_text(name, head):
    (prompt,) = render([ASKED], name, head, shots=POOL)
    (bare,) = render([ASKED], name, head)
    for branch, alone in zip(prompt.branches, bare.branches, strict=True):
        assert_consistent(name, branch)
        tokenizer = load_tokenizer(name)
        decoded = [tokenizer.decode([t.token_id for t in each.targets]) for each in (branch, alone)]
        assert decoded[0] == decoded[1]


def test_a_question_is_not_its_own_example():
    own = Question(id="7", prompt=" Which is 0?", options=("n0", "moon", "tide"), answer=1)
    text = texts("loglik", own, num_shots=2)[0]
    assert "Answer: moon" not in text
    assert text.startswith("Question: Which is 1?\nAnswer: tide\n\nQuestion: Which is 2?\nAnswer: n2\n\n")


def test_only_the_contexts_of_questions_are_cut():
    limit = max(len(tokenize("bytes", text)) for text in texts("loglik")) - 5
    cut = texts("loglik", max_tokens=limit)
    assert all("Context: It shines.\n\n" in text and "The moon pulls." not in text for text in cut)


def test_a_classifier_is_shown_none():
    with pytest.raises(InputError, match="--shots"):
        texts("binary")
