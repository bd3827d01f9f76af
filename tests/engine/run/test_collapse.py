"""A run that keeps to one position says so; one that does not, or has reason to, does not."""

import numpy as np
import pytest
from scipy.stats import binom

from strata.engine.run.artefacts import describe_answers
from strata.engine.run.collapse import MAX_PROBABILITY, describe_collapse, find_collapse
from strata.engine.types import Question, QuestionScores, RunWarnings

from ...sample_questions import write_jsonl


def answered(positions, num_options=4, answers=None):
    rows = []
    for number, position in enumerate(positions):
        answer = None if answers is None else answers[number]
        question = Question(id=str(number), prompt="?", options=("x",) * num_options, answer=answer)
        scores = np.eye(num_options)[position]
        rows.append(QuestionScores(question=question, scores=scores, probabilities=scores))
    return rows


def test_ninety_nine_of_a_hundred():
    found = find_collapse(answered([0] * 99 + [2]))
    assert (found.letter, found.num_answers, found.num_questions, found.expected) == ("A", 99, 100, 25)
    assert describe_collapse(found, "letters").endswith("expected --debias rotate")
    assert "A first in 99 of 100 questions, where about 25" in describe_collapse(found, "letters")
    assert "--head letters --debias rotate" in describe_collapse(found, "yes-no")


@pytest.mark.parametrize("num_questions", [12, 40, 100])
def test_it_is_told_only_where_a_binomial_test_says_so_too(num_questions):
    told = [
        count
        for count in range(num_questions + 1)
        if find_collapse(
            answered([1] * count + [0, 2, 3] * ((num_questions - count) // 3 + 1))[:num_questions]
        )
    ]
    assert told, "not even all answers at one position are told"
    assert told == list(range(told[0], num_questions + 1))
    assert told[0] > 2 * num_questions / 4
    assert binom.sf(told[0] - 1, num_questions, 1 / 4) < MAX_PROBABILITY
    # Never far from the exact test: the bound costs a few answers.
    sure = [count for count in told if binom.sf(count - 1, num_questions, 1 / 4) < MAX_PROBABILITY / 100]
    assert told[0] <= min(sure, default=num_questions)


def test_answers_that_truly_stand_there_are_no_collapse():
    assert find_collapse(answered([0] * 100, answers=[0] * 90 + [1] * 10)) is None
    assert find_collapse(answered([0] * 100, answers=[0, 1, 2, 3] * 25)) is not None


def test_few_or_even_answers_are_none():
    assert find_collapse([]) is None
    assert find_collapse(answered([0] * 5)) is None
    assert find_collapse(answered([0, 1, 2, 3] * 200)) is None


def test_a_run_that_collapses_warns_and_keeps_the_shares(checkpoint, score, tmp_path):
    # All options are alike but for their letters: random weights prefer one.
    rows = [{"id": n, "question": f"Number {n}?", "options": ["the same"] * 4} for n in range(40)]
    questions = write_jsonl(tmp_path / "same.jsonl", rows)
    run = score(model=checkpoint("llama-gqa"), questions=questions, head="letters")
    (told,) = [text for text in run.record["warnings"]["messages"] if "--debias rotate" in text]
    assert "head letters puts option" in told
    counts = run.record["measured"]["best_option_counts"]
    assert sum(counts.values()) == 40
    assert max(counts.values()) > 20
    turned = score(model=checkpoint("llama-gqa"), questions=questions, head="letters", debias="rotate")
    assert not [text for text in turned.record["warnings"]["messages"] if "--debias rotate" in text]


def test_labels_are_counted_by_name_however_many_there_are():
    """There are 26 letters; a classifier may have hundreds of labels, and a row some of them only."""
    names = tuple(f"label {number:02}" for number in range(30))
    rows = []
    for options in (names, names, names[25:]):
        question = Question(id=options[0], prompt="a text", options=options, is_text=True)
        scores = np.array([float(name == "label 28") for name in options])
        rows.append(QuestionScores(question=question, scores=scores, probabilities=scores))
    found = describe_answers(rows, "classify", "none", RunWarnings())
    assert found == {"best_option_counts": {"label 28": 3}}
