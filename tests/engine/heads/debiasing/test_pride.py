"""Pride against a planted preference for places, through the real prompts and the real head.

Planted: log P(letter at a place) is what its option is worth plus what the place is worth, normalized. Then
the estimated prior is the planted one exactly, and the scores of what is not sampled are the options' worth.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from strata.engine.heads.debias import BY_PLACE, STATED_ORDER
from strata.engine.heads.debiasing.debias import DebiasSettings
from strata.engine.heads.debiasing.pride import LEAST_SAMPLE, Pride, estimate_log_priors
from strata.engine.heads.probabilities import log_softmax
from strata.engine.heads.registry import HEADS
from strata.engine.prompts.render import PromptSettings, render_prompts
from strata.engine.prompts.templates import load_template
from strata.engine.types import Prompt, Question, QuestionScores, RunWarnings

from ...prompts.small_tokenizers import load_tokenizer
from ..scored_prompts import score_by, table_of

BIAS = {2: np.array([1.5, -0.5]), 5: np.array([2.0, 0.5, 0.0, -1.0, -1.5]), 26: np.linspace(3, -3, 26)}
LETTERS = HEADS["letters"]


def ask(num: int, size: int, first: int = 0) -> list[Question]:
    """Questions whose answers go round the places."""
    return [
        Question(id=f"{size}-{index}", prompt=f"{index}?", options=("x",) * size, answer=index % size)
        for index in range(first, first + num)
    ]


def worth(question: Question) -> np.ndarray:
    """[O] what each option is worth; the answer the most."""
    drawn = np.random.default_rng([len(question.options), *question.id.encode()])
    values = drawn.normal(size=len(question.options))
    values[question.answer] = values.max() + 0.5
    return values


def render(questions: list[Question], debias: Pride) -> list[Prompt]:
    settings = PromptSettings(
        template=load_template(None, head=LETTERS), head=LETTERS, debias=debias, max_tokens=None
    )
    return render_prompts(questions, settings, load_tokenizer("bytes"), RunWarnings())


def observe(prompts: list[Prompt]) -> list[QuestionScores]:
    """Rows of the letters head, one token a letter, of a model with the planted preference."""
    logits = []
    for prompt in prompts:
        planted = worth(prompt.question)
        bias = BIAS[len(planted)]
        for branch in prompt.branches:
            assert len(branch.targets) == 1
            values = planted[list(branch.order)] + bias
            logits.append(log_softmax(values)[branch.order.index(branch.option)])
    assert len(table_of(prompts).rows) == len(logits)
    return score_by(LETTERS, prompts, logits=logits)


def pride(**settings) -> Pride:
    return Pride(settings=DebiasSettings(**settings))


def is_sampled(row: QuestionScores) -> bool:
    return BY_PLACE in row.member_scores


@pytest.mark.parametrize("size", BIAS)
def test_a_planted_preference_is_taken_out(size):
    debias, questions = pride(sample=0.1), ask(60, size)
    rows = observe(render(questions, debias))
    assert sum(map(is_sampled, rows)) == LEAST_SAMPLE
    np.testing.assert_allclose(estimate_log_priors(rows)[size], log_softmax(BIAS[size]), atol=1e-12)
    finished = debias.finish(rows, RunWarnings())
    for before, after in zip(rows, finished, strict=True):
        assert after.probabilities.sum() == pytest.approx(1)
        if not is_sampled(before):
            np.testing.assert_allclose(after.scores, log_softmax(worth(after.question)), atol=1e-12)
            np.testing.assert_array_equal(after.member_scores[STATED_ORDER], before.scores)
    right = [row.order[0] == row.question.answer for row in finished]
    right_before = [np.argmax(row.member_scores[STATED_ORDER]) == row.question.answer for row in finished]
    assert np.mean(right) > np.mean(right_before) + 0.1
    assert all(good for good, row in zip(right, rows, strict=True) if not is_sampled(row))


def test_sampled_questions_keep_the_average_of_all_their_orders():
    debias = pride()
    rows = observe(render(ask(20, 5), debias))
    for before, after in zip(rows, debias.finish(rows, RunWarnings()), strict=True):
        if is_sampled(before):
            np.testing.assert_array_equal(before.scores, after.scores)


def test_each_number_of_options_has_a_prior_of_its_own():
    debias, questions = pride(), [*ask(30, 2), *ask(40, 5)]
    rows = observe(render(questions, debias))
    assert sum(map(is_sampled, rows)) == 2 * LEAST_SAMPLE
    for row in debias.finish(rows, RunWarnings()):
        if not is_sampled(row):
            np.testing.assert_allclose(row.scores, log_softmax(worth(row.question)), atol=1e-12)


def test_finishing_again_with_more_rows_changes_only_what_was_not_known():
    """As a run that was interrupted: half of the rows are finished, then all."""
    debias = pride()
    rows = observe(render(ask(50, 5), debias))
    half = debias.finish(rows[:25], RunWarnings())
    again = debias.finish([*half, *rows[25:]], RunWarnings())
    for one, other in zip(again, debias.finish(rows, RunWarnings()), strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-12)


def test_without_its_sample_a_number_of_options_stays_as_observed_and_is_told():
    debias, warnings = pride(), RunWarnings()
    rows = [row for row in observe(render([*ask(30, 2), *ask(30, 5)], debias)) if len(row.scores) == 5]
    left = [row for row in rows if not is_sampled(row)]
    finished = debias.finish(left, warnings)
    for before, after in zip(left, finished, strict=True):
        np.testing.assert_array_equal(before.scores, after.scores)
    assert warnings.messages == [
        f"--debias pride: {len(left)} question(s) of 5 options are scored in the stated order only: "
        "none of the sample has so many"
    ]


def test_the_sample_is_a_share_drawn_by_the_seed_and_no_less_than_a_few():
    questions = ask(1000, 5)

    def drawn(debias: Pride) -> set[int]:
        return {index for index, orders in enumerate(debias.plan_orders(questions)) if len(orders) > 1}

    assert len(drawn(pride())) == 50
    assert len(drawn(pride(sample=0.2))) == 200
    assert len(drawn(pride(sample=0.001))) == LEAST_SAMPLE
    assert drawn(pride()) == drawn(pride())
    assert drawn(pride()) != drawn(pride(seed=1))
    assert all(orders[0] == (0, 1, 2, 3, 4) for orders in pride().plan_orders(questions))


def test_one_question_is_its_own_sample():
    debias = pride()
    (row,) = observe(render(ask(1, 5), debias))
    (after,) = debias.finish([row], RunWarnings())
    np.testing.assert_array_equal(after.scores, row.scores)


def test_one_option_has_nothing_to_take_out():
    row = replace(observe(render(ask(1, 2), pride()))[0], scores=np.array([-1.0]), member_scores={})
    warnings = RunWarnings()
    assert pride().finish([row], warnings) == [row]
    assert not warnings.messages
