"""Writes questions of five options on things, with wrong options that are hard to tell. Knows no files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from strata.training.demo_corpus.entities import Entity, Fact, facts_of

NUM_OPTIONS = 5
NUM_SIMILAR = 10
"""Wrong options are drawn from the values of so many most similar things."""


@dataclass(frozen=True, kw_only=True)
class QuizQuestion:
    """A question on one fact: `answer` is the index of the right option, `subject` the thing's name."""

    subject: str
    attribute: str
    prompt: str
    options: tuple[str, ...]
    answer: int


def write_question(
    fact: Fact, others: Sequence[Entity], rng: Random, *, shown: Sequence[Entity] | None = None
) -> QuizQuestion | None:
    """Asks for one fact.

    Wrong options are first the values of the thing's other attributes that are of the same type, then the
    same attribute's values of similar things: numbers close by, else those that share other values.

    Args:
        fact: what is asked.
        others: things whose values may be wrong options, the nearest at hand first where nothing else counts.
        rng: decides wording, wrong options and their order.
        shown: things whose passages are in the context. When given, wrong options are first what these
            passages and the thing's passage say, whatever its type, so that only reading tells.

    Returns:
        The question; None when fewer than four different wrong options are to be had.
    """
    wrong: list[str] = []
    seen = {fact.value.casefold()}
    for value in _wrong_values(fact, others, rng, shown):
        if value.casefold() not in seen and len(wrong) < NUM_OPTIONS - 1:
            seen.add(value.casefold())
            wrong.append(value)
    if len(wrong) < NUM_OPTIONS - 1:
        return None
    options = [fact.value, *wrong]
    rng.shuffle(options)
    return QuizQuestion(
        subject=fact.entity.name,
        attribute=fact.attribute.name,
        prompt=rng.choice(fact.attribute.asks).replace("{name}", fact.entity.name),
        options=tuple(options),
        answer=options.index(fact.value),
    )


def _wrong_values(
    fact: Fact, others: Sequence[Entity], rng: Random, shown: Sequence[Entity] | None
) -> list[str]:
    """The thing's other values, then those that similar things have for the attribute."""
    name = fact.attribute.name
    same_thing = [
        other.value
        for other in facts_of(fact.entity, fact.kind)
        if other.attribute.name != name and (shown is not None or other.attribute.type == fact.attribute.type)
    ]
    if shown is not None:
        # The same attribute of what is told beside it is the likeliest mistake.
        rivals = [other.values[name] for other in shown if name in other.values]
        same_thing = [*rivals, *rng.sample(same_thing, k=len(same_thing))]
    same_kind = [other for other in others if other.kind == fact.kind.name and name in other.values]
    same_kind.sort(key=lambda other: _distance(fact.entity, other, name))
    near = list(dict.fromkeys(other.values[name] for other in same_kind))
    near, far = near[:NUM_SIMILAR], near[NUM_SIMILAR:]
    rng.shuffle(near)
    return [*same_thing, *near, *far]


def _distance(entity: Entity, other: Entity, name: str) -> float:
    number, other_number = as_number(entity.values[name]), as_number(other.values[name])
    if number is not None and other_number is not None:
        return abs(number - other_number)
    return -sum(other.values.get(key) == value for key, value in entity.values.items() if key != name)


def as_number(value: str) -> float | None:
    """The number that a value starts with ("1875", "12 meters"); None when it does not start with one."""
    found = re.match(r"\d+(\.\d+)?", value)
    return float(found.group()) if found else None
