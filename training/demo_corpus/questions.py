"""Writes questions of five options on things, with wrong options that are hard to tell. Knows no files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from strata.training.demo_corpus.facts import Attribute, Entity, Kind

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
    entity: Entity,
    attribute: Attribute,
    kinds: Mapping[str, Kind],
    others: Sequence[Entity],
    rng: Random,
    *,
    shown: Sequence[Entity] | None = None,
) -> QuizQuestion | None:
    """Asks for one fact.

    Wrong options are first the values of the thing's other attributes that are of the same type, then the
    same attribute's values of similar things: numbers close by, else those that share other values.

    Args:
        entity: the thing asked about.
        attribute: what is asked; the thing has a value for it.
        kinds: every kind by name.
        others: things whose values may be wrong options, the nearest at hand first where nothing else counts.
        rng: decides wording, wrong options and their order.
        shown: things whose passages are in the context. When given, wrong options are first what these
            passages and the thing's own say, whatever its type, so that only reading tells.

    Returns:
        The question; None when fewer than four different wrong options are to be had.
    """
    right = entity.values[attribute.name]
    wrong: list[str] = []
    seen = {right.casefold()}
    for value in _wrong_values(entity, attribute, kinds[entity.kind], others, rng, shown):
        if value.casefold() not in seen and len(wrong) < NUM_OPTIONS - 1:
            seen.add(value.casefold())
            wrong.append(value)
    if len(wrong) < NUM_OPTIONS - 1:
        return None
    options = [right, *wrong]
    rng.shuffle(options)
    return QuizQuestion(
        subject=entity.name,
        attribute=attribute.name,
        prompt=rng.choice(attribute.asks).replace("{name}", entity.name),
        options=tuple(options),
        answer=options.index(right),
    )


def _wrong_values(
    entity: Entity,
    attribute: Attribute,
    kind: Kind,
    others: Sequence[Entity],
    rng: Random,
    shown: Sequence[Entity] | None,
) -> list[str]:
    own = [
        entity.values[other.name]
        for other in kind.attributes
        if other.name != attribute.name
        and other.name in entity.values
        and (shown is not None or other.type == attribute.type)
    ]
    if shown is not None:
        # The same attribute of what is told beside it is the likeliest mistake.
        rivals = [other.values[attribute.name] for other in shown if attribute.name in other.values]
        own = [*rivals, *rng.sample(own, k=len(own))]
    same_kind = [other for other in others if other.kind == entity.kind and attribute.name in other.values]
    same_kind.sort(key=lambda other: _distance(entity, other, attribute.name))
    near = list(dict.fromkeys(other.values[attribute.name] for other in same_kind))
    near, far = near[:NUM_SIMILAR], near[NUM_SIMILAR:]
    rng.shuffle(near)
    return [*own, *near, *far]


def _distance(entity: Entity, other: Entity, name: str) -> float:
    number, other_number = as_number(entity.values[name]), as_number(other.values[name])
    if number is not None and other_number is not None:
        return abs(number - other_number)
    return -sum(other.values.get(key) == value for key, value in entity.values.items() if key != name)


def as_number(value: str) -> float | None:
    """The number that a value starts with ("1875", "12 meters"); None when it does not start with one."""
    found = re.match(r"\d+(\.\d+)?", value)
    return float(found.group()) if found else None
