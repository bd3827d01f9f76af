"""Which orders the ways show, against counting; and the scores of all orders, which no order may change."""

from __future__ import annotations

from itertools import permutations
from math import factorial

import numpy as np
import pytest

from strata.engine.heads.debias import group_by_order, mean_by_place, rotations, unrotate_and_average
from strata.engine.heads.debiasing.debias import DebiasSettings
from strata.engine.heads.debiasing.permute import DEFAULT_ORDERS
from strata.engine.heads.debiasing.registry import DEBIASES, choose_debias
from strata.engine.heads.registry import HEADS
from strata.engine.types import Branch, InputError, Question


def question(size: int, name: str = "q") -> Question:
    return Question(id=name, prompt="?", options=tuple(map(str, range(size))))


def orders(name: str, asked: Question, **settings) -> tuple[tuple[int, ...], ...]:
    (found,) = choose_debias(name, DebiasSettings(**settings)).plan_orders([asked])
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_few_options_are_shown_in_all_orders(size):
    found = orders("permute", question(size))
    assert set(found) == set(permutations(range(size)))
    assert len(found) == factorial(size)
    assert found[0] == tuple(range(size))


@pytest.mark.parametrize(("size", "wanted"), [(5, None), (5, 7), (26, None), (26, 3), (4, 1), (3, 100)])
def test_more_options_are_shown_in_so_many_different_orders_of_which_one_is_the_stated(size, wanted):
    found = orders("permute", question(size), num_orders=wanted)
    assert len(found) == len(set(found)) == min(wanted or DEFAULT_ORDERS, factorial(size))
    assert found[0] == tuple(range(size))
    assert all(sorted(order) == list(range(size)) for order in found)


def test_drawn_orders_depend_on_seed_and_question_alone():
    assert orders("permute", question(6)) == orders("permute", question(6))
    assert orders("permute", question(6)) != orders("permute", question(6), seed=1)
    assert orders("permute", question(6)) != orders("permute", question(6, "other"))
    beside = choose_debias("permute").plan_orders([question(3, "a"), question(6)])
    assert beside[1] == orders("permute", question(6))


def test_the_other_ways_show_every_cyclic_order_or_the_stated_one():
    assert orders("rotate", question(3)) == ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    assert orders("none", question(3)) == orders("set", question(3)) == ((0, 1, 2),)


def test_only_heads_that_number_options_are_permuted_and_only_the_others_take_a_set():
    for name in ("rotate", "permute", "pride"):
        suited = {head for head in HEADS if choose_debias(name).suits(HEADS[head])}
        assert suited == {"letters"}
    for head in ("loglik", "yes-no", "binary", "contrast"):
        assert choose_debias("set").suits(HEADS[head])
    for head in ("letters", "classify"):
        with pytest.raises(InputError, match=f"head {head}"):
            choose_debias("set").suits(HEADS[head])


def test_unknown_ways_and_settings_are_refused():
    with pytest.raises(InputError, match=r"--debias 'turn': expected none, rotate, permute, set or pride"):
        choose_debias("turn")
    assert set(DEBIASES) == {"none", "rotate", "permute", "set", "pride"}
    for setting, flag in (
        ({"num_orders": 0}, "orders 0"),
        ({"sample": 0.0}, "sample"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(InputError, match=flag):
            DebiasSettings(**setting)


@pytest.mark.parametrize("shown", [rotations(4), tuple(permutations(range(4)))], ids=["rotate", "permute"])
def test_scores_are_those_of_the_question_asked_in_any_of_its_orders(shown):
    """A model's scores depend on the texts in their places alone: here on a table drawn at random."""
    table = {order: np.random.default_rng(order).normal(size=4) for order in permutations(range(4))}

    def score(stated: tuple[int, ...]) -> np.ndarray:
        """[4] by text, of a question that states the texts in an order."""
        branches, scores = [], []
        for order in shown:
            texts = tuple(stated[place] for place in order)
            for place, option in enumerate(order):
                branches.append(
                    Branch(option=option, order=order, label="", token_ids=np.zeros(1), text="", targets=())
                )
                scores.append(table[texts][place])
        found, _ = unrotate_and_average(group_by_order(branches, scores))
        return found[np.argsort(stated)]

    expected = score((0, 1, 2, 3))
    for stated in shown:
        np.testing.assert_allclose(score(stated), expected, atol=1e-12)


def test_the_mean_by_place_goes_by_place():
    found = mean_by_place({(0, 1): np.array([0.0, -2.0]), (1, 0): np.array([-1.0, 0.0])})
    first, second = (
        np.log(np.array([1, np.exp(-2)]) / (1 + np.exp(-2))),
        np.log(np.array([np.exp(-1), 1]) / (1 + np.exp(-1))),
    )
    np.testing.assert_allclose(found, [(first[0] + second[1]) / 2, (first[1] + second[0]) / 2])
