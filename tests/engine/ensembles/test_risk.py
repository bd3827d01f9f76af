"""The bound on a cascade's risk: how often it is broken on planted data whose risk is known exactly.

Planted: margins are uniform in 0..1, so that the share s of least sure questions is that of margins below s,
and the risk is an integral over those above.
"""

import math

import numpy as np
import pytest
from scipy.stats import binom

from strata.engine.ensembles.betting import p_value_of_mean_at_least
from strata.engine.ensembles.risk import (
    CascadeSample,
    certify_share,
    losses_at,
    sample_of,
    smallest_share,
)
from strata.engine.ensembles.rules import doubts
from strata.engine.types import InputError

from .planted_members import make_row

NUM_SETS = 250
MAX_BROKEN = binom.ppf(0.999, NUM_SETS, 0.1)


def row_of(margin, is_right, question_id):
    """Two options, the first of them the answer, in this margin."""
    probabilities = np.array([1 + margin, 1 - margin]) / 2
    return make_row(np.log(probabilities if is_right else probabilities[::-1]), 0, question_id)


class Independent:
    """The small model is right with 0.55 + 0.45 margin, the big one with 0.9, whichever was right before."""

    risk = 0.02

    @staticmethod
    def draw(generator, margins):
        return (
            generator.random(len(margins)) < 0.55 + 0.45 * margins,
            generator.random(len(margins)) < 0.9,
        )

    @staticmethod
    def true_risk(share):
        return 0.35 * (1 - share) - 0.225 * (1 - share**2)


class Nested:
    """The big model is right wherever the small one is, and with 0.3 (1 - margin)^2 besides."""

    risk = 0.01

    @staticmethod
    def draw(generator, margins):
        luck = generator.random(len(margins))
        return luck < 0.6, luck < 0.6 + 0.3 * (1 - margins) ** 2

    @staticmethod
    def true_risk(share):
        return 0.1 * (1 - share) ** 3


def planted_sample(planted, num_questions, generator):
    margins = generator.random(num_questions)
    small_right, big_right = planted.draw(generator, margins)
    return CascadeSample(doubts=-margins, small_right=small_right, big_right=big_right, taken_right=big_right)


def rows_of(sample):
    """The small and the big model's results that a sample is made from."""
    pairs = zip(-sample.doubts, sample.small_right, strict=True)
    small = [row_of(margin, right, str(q)) for q, (margin, right) in enumerate(pairs)]
    return small, [row_of(0.5, right, str(q)) for q, right in enumerate(sample.big_right)]


def planted_cascade(planted, num_questions, generator):
    return rows_of(planted_sample(planted, num_questions, generator))


def planted_target(num_questions, generator):
    return [row_of(margin, True, f"t{q}") for q, margin in enumerate(generator.random(num_questions))]


def certified(sample, target, risk):
    return certify_share(sample, target, risk=risk, confidence=0.9, replaces=True, seed=0)[0]


def risk_of(planted, target, share):
    """The true risk of the limit that a share is among the questions to be answered."""
    num_taken = math.ceil(share * len(target) - 1e-9)
    return planted.true_risk(np.sort(-target)[num_taken - 1] if num_taken else 0.0)


def naive_share(sample, target, risk):
    """The smallest share up to which the mean loss stays below the risk: no bound at all."""
    chosen = 1.0
    for percent in range(99, -1, -1):
        if losses_at(sample, target, percent / 100).mean() >= risk:
            break
        chosen = percent / 100
    return chosen


@pytest.mark.parametrize(("num_questions", "num_target"), [(500, 300), (3000, 1000)])
@pytest.mark.parametrize("planted", [Independent, Nested])
def test_the_bound_is_broken_in_a_tenth_of_all_sets_at_most(planted, num_questions, num_target):
    generator = np.random.default_rng(0)
    broken = naive_broken = 0
    shares = []
    for _ in range(NUM_SETS):
        target = -generator.random(num_target)
        sample = planted_sample(planted, num_questions, generator)
        shares.append(certified(sample, target, planted.risk))
        broken += risk_of(planted, target, shares[-1]) >= planted.risk
        naive = naive_share(sample, target, planted.risk)
        naive_broken += risk_of(planted, target, naive) >= planted.risk
    assert broken <= MAX_BROKEN < naive_broken
    assert np.mean(shares) < 0.8


@pytest.mark.parametrize("planted", [Independent, Nested])
def test_with_plenty_of_data_the_share_is_near_the_smallest(planted):
    generator = np.random.default_rng(1)
    target = -generator.random(5000)
    samples = [planted_sample(planted, 20_000, generator) for _ in range(21)]
    median = np.median([certified(sample, target, planted.risk) for sample in samples])
    smallest = next(s for s in np.arange(0, 1, 0.01) if risk_of(planted, target, s) < planted.risk)
    assert smallest <= median < smallest + 0.08


@pytest.mark.parametrize("planted", [Independent, Nested])
def test_rows_give_what_their_sample_gives(planted):
    generator = np.random.default_rng(8)
    sample, target = planted_sample(planted, 1500, generator), planted_target(300, generator)
    small, big = rows_of(sample)
    choice = smallest_share(small, list(reversed(big)), target, risk=planted.risk)
    assert choice.share == certified(sample, doubts(target, "margin"), planted.risk)
    assert choice.is_certified
    assert choice.num_questions == 1500
    assert choice.small_accuracy == pytest.approx(sample.small_right.mean())
    assert choice.big_accuracy == pytest.approx(sample.big_right.mean())
    by_hand = sample.big_right.astype(int) - np.where(
        doubts(small, "margin") >= np.sort(doubts(target, "margin"))[::-1][round(choice.share * 300) - 1],
        sample.big_right,
        sample.small_right,
    )
    assert choice.observed_loss == pytest.approx(by_hand.mean())


@pytest.mark.parametrize("planted", [Independent, Nested])
def test_chosen_on_one_half_it_helps_on_the_other(planted):
    """The other half loses little, far less than where as many questions were taken by chance."""
    generator = np.random.default_rng(9)
    small, big = planted_cascade(planted, 6000, generator)
    half = slice(3000)
    choice = smallest_share(small[half], big[half], small[3000:], risk=planted.risk)
    other = sample_of(small[3000:], big[3000:], big[3000:], "margin")
    lost = losses_at(other, other.doubts, choice.share).mean()
    by_chance = (1 - choice.share) * (other.big_right.mean() - other.small_right.mean())
    assert choice.share < 0.8
    assert lost < 1.5 * planted.risk
    assert lost < by_chance / 2


def test_too_few_questions_give_all_to_the_big_model():
    small, big = planted_cascade(Nested, 50, np.random.default_rng(2))
    choice = smallest_share(small, big, small, risk=0.01)
    assert (choice.share, choice.is_certified, choice.observed_loss) == (1.0, True, 0.0)
    lone = smallest_share(small[:1], big[:1], small[:1], risk=0.01)
    assert (lone.share, lone.num_questions) == (1.0, 1)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_small_model_that_is_as_good_needs_no_big_one(is_right):
    margins = np.random.default_rng(3).random(800)
    rows = [row_of(margin, is_right, str(q)) for q, margin in enumerate(margins)]
    choice = smallest_share(rows, rows, rows, risk=0.01)
    assert (choice.share, choice.observed_loss) == (0.0, 0.0)
    assert choice.small_accuracy == choice.big_accuracy == is_right


def test_ties_count_against_a_share_that_cuts_them():
    """All margins alike: no share below 1 can be told from 0, so each costs as much as none at all."""
    right = np.arange(400) % 2 == 0
    small = [row_of(0.5, is_right, str(q)) for q, is_right in enumerate(right)]
    big = [row_of(0.5, True, str(q)) for q in range(400)]
    assert smallest_share(small, big, small, risk=0.1).share == 1.0
    sample, found = sample_of(small, big, big, "margin"), doubts(small, "margin")
    assert losses_at(sample, found, 0.99).mean() == losses_at(sample, found, 0.0).mean() == 0.5
    assert losses_at(sample, found, 1.0).mean() == 0


def test_answers_that_are_blended_are_tested_everywhere():
    generator = np.random.default_rng(4)
    small, big = planted_cascade(Nested, 1000, generator)
    assert not smallest_share(small, big, small, risk=0.01, taken=small).is_certified
    replaced = smallest_share(small, big, small, risk=0.01)
    assert smallest_share(small, big, small, risk=0.01, taken=big) == replaced


def test_the_order_of_the_file_does_not_matter_much_and_the_seed_decides():
    generator = np.random.default_rng(5)
    small, big = planted_cascade(Nested, 2000, generator)
    target = planted_target(500, generator)
    by_size = sorted(range(2000), key=lambda place: small[place].margin)
    one = smallest_share(small, big, target, risk=0.02)
    other = smallest_share(
        [small[p] for p in by_size], [big[p] for p in reversed(by_size)], target, risk=0.02
    )
    assert abs(one.share - other.share) < 0.1
    assert smallest_share(small, big, target, risk=0.02) == one


def slow_p_value(values, mean, level):
    """One bet after another, as the source has it."""
    capital = best = 1.0
    total, squares, variance = 0.5, 0.25, 0.25
    for place, value in enumerate(values, start=1):
        bet = min(0.75 / (1 - mean), math.sqrt(2 * math.log(1 / level) / (len(values) * variance)))
        capital *= 1 - bet * (value - mean)
        best = max(best, capital)
        total += value
        squares += (value - total / (place + 1)) ** 2
        variance = squares / (place + 1)
    return 1 / best


def test_the_p_value_like_a_slow_loop():
    generator = np.random.default_rng(6)
    for mean in (0.5, 0.505, 0.9):
        values = generator.integers(0, 3, size=80) / 2
        expected = slow_p_value(values, mean, 0.1)
        assert p_value_of_mean_at_least(values, mean, level=0.1) == pytest.approx(expected)


@pytest.mark.parametrize("chances", [(0.0, 0.98, 0.02), (0.05, 0.88, 0.07), (0.4, 0.2, 0.4), (0.9, 0.0, 0.1)])
@pytest.mark.parametrize("num", [20, 400])
def test_the_p_value_is_small_as_rarely_as_it_says(chances, num):
    """Values 0, 1/2 and 1 whose mean is exactly the one that is tested."""
    generator = np.random.default_rng(7)
    mean = float(np.dot(chances, [0, 0.5, 1]))
    draws = generator.choice([0, 0.5, 1], size=(1000, num), p=chances)
    found = np.array([p_value_of_mean_at_least(values, mean, level=0.1) for values in draws])
    for level in (0.05, 0.1, 0.3):
        assert (found <= level).sum() <= binom.ppf(0.999, 1000, level)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"risk": 0.0}, "risk: 0.0; expected a number between 0 and 1"),
        ({"risk": 0.1, "confidence": 90.0}, "confidence: 90.0; expected"),
        ({"risk": 0.1, "to_answer": []}, "no question to be answered"),
        ({"risk": 0.1, "big": []}, "question '1': no scores of the big model; expected both"),
        ({"risk": 0.1, "small": [], "big": []}, "no question with a known answer"),
    ],
)
def test_what_cannot_be_chosen(changed, told):
    rows = [make_row([0.0, 1.0], 0)]
    with pytest.raises(InputError, match=told):
        smallest_share(**({"small": rows, "big": rows, "to_answer": rows} | changed))
