"""Invents things and scenes (a context of a few passages and questions on them), as many as wanted.

Names are made up and values are drawn anew for every scene, so that nothing can be learned but reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from strata.training.demo_corpus.entities import Attribute, Entity, Fact, Kind, facts_of
from strata.training.demo_corpus.passages import write_passage
from strata.training.demo_corpus.questions import QuizQuestion, write_question

ONSETS = (
    *("b", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gl", "gr", "h", "j", "k", "kr", "l", "m", "n"),
    *("p", "ph", "pr", "qu", "r", "s", "sc", "sh", "sp", "st", "t", "th", "tr", "v", "w", "x", "y", "z", ""),
)
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ae", "ai", "ea", "ia", "ie", "io", "ou", "y")
CODAS = ("", "", "", "n", "r", "s", "l", "m", "t", "x", "mp", "rt", "st", "ck", "ll", "sk")
ENDINGS = ("", "", "ium", "us", "ite", "on", "a", "in", "er", "ia", "is", "um", "eum", "son", "ov", "berg")
WORD = re.compile(r"[A-Za-z]{3,12}")
REAL_VALUE_SHARE = 0.5
NUM_BYSTANDERS = 12


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Passages as (title, text), in the order shown, and questions on the things they tell of."""

    passages: tuple[tuple[str, str], ...]
    questions: tuple[QuizQuestion, ...]


@dataclass(frozen=True, kw_only=True)
class Inventor:
    """Invents things of every kind; `pools` are real values and `words` real words to draw from.

    `in_context` is the share of the questions whose wrong options are in the context, too.
    """

    kinds: Mapping[str, Kind]
    pools: Mapping[tuple[str, str], Sequence[str]]
    words: Sequence[str]
    in_context: float = 0.7

    def invent_entity(self, kind: Kind, rng: Random) -> Entity:
        """A thing with a made-up name and a value for every attribute."""
        values = {
            attribute.name: self._invent_value(kind.name, attribute, rng) for attribute in kind.attributes
        }
        return Entity(kind=kind.name, name=self._invent_name(rng), values=values)

    def invent_scene(self, rng: Random, max_passages: int = 2, max_questions: int = 4) -> Scene:
        """A few passages, mostly on things of one kind, and questions on them."""
        kind = rng.choice(list(self.kinds.values()))
        entities = [
            self.invent_entity(kind if rng.random() < 0.8 else rng.choice(list(self.kinds.values())), rng)
            for _ in range(rng.randint(1, max_passages))
        ]
        bystanders = [
            self.invent_entity(kind, rng)
            for kind in {e.kind: self.kinds[e.kind] for e in entities}.values()
            for _ in range(NUM_BYSTANDERS)
        ]
        passages = [(capitalize(e.name), write_passage(e, self.kinds[e.kind], rng)) for e in entities]
        facts = [fact for entity in entities for fact in facts_of(entity, self.kinds[entity.kind])]
        rng.shuffle(facts)
        asked = (
            self._ask(fact, [other for other in entities if other is not fact.entity], bystanders, rng)
            for fact in facts
        )
        questions = [question for question in asked if question is not None]
        return Scene(passages=tuple(passages), questions=tuple(questions[:max_questions]))

    def _ask(
        self, fact: Fact, shown: Sequence[Entity], bystanders: Sequence[Entity], rng: Random
    ) -> QuizQuestion | None:
        others = [*shown, *bystanders]
        in_context = shown if rng.random() < self.in_context else None
        return write_question(fact, others, rng, shown=in_context)

    def _invent_name(self, rng: Random) -> str:
        form = rng.random()
        if form < 0.15:
            return f"{rng.choice(self.words)} {invent_word(rng)}"
        if form < 0.3:
            return f"{rng.choice(self.words)} {rng.choice(self.words)}"
        if form < 0.45:
            return f"{invent_word(rng)} {invent_word(rng)}"
        return f"{invent_word(rng)} {rng.randint(1, 30)}" if form < 0.55 else invent_word(rng)

    def _invent_value(self, kind: str, attribute: Attribute, rng: Random) -> str:
        pool = self.pools.get((kind, attribute.name), ())
        if attribute.type in NUMERIC:
            return NUMERIC[attribute.type](rng)
        if pool and rng.random() < REAL_VALUE_SHARE:
            return rng.choice(pool)
        if attribute.type == "person":
            return f"{capitalize(invent_word(rng))} {capitalize(invent_word(rng))}"
        if attribute.type == "symbol":
            return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 3))).title()
        words = [rng.choice(self.words) for _ in range(rng.choice((1, 1, 2, 3)))]
        return " ".join([*words, invent_word(rng)] if rng.random() < 0.3 else words)


NUMERIC = {
    "year": lambda rng: str(rng.randint(1550, 2022)),
    "number": lambda rng: str(rng.choice((rng.randint(1, 10), rng.randint(1, 120)))),
    "length_km": lambda rng: f"{rng.randint(5, 5300)} kilometers",
    "length_m": lambda rng: f"{rng.choice((rng.randint(1, 40), rng.randint(200, 6900)))} meters",
    "light_years": lambda rng: str(rng.randint(4, 3000)),
    "letter": lambda rng: rng.choice("OBAFGKMLT"),
}


def invent_word(rng: Random) -> str:
    """A pronounceable word of one to three syllables that is most likely in no dictionary."""
    syllables = (
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 1, 2)))
    )
    return capitalize("".join(syllables) + rng.choice(ENDINGS))


def capitalize(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]


def make_inventor(kinds: Mapping[str, Kind], entities: Sequence[Entity], in_context: float = 0.7) -> Inventor:
    """An inventor that knows the values of some things and the words of those values and of the templates.

    Args:
        kinds: every kind by name.
        entities: the things it may know of; held-out ones do not belong here.
        in_context: see `Inventor`.
    """
    pools: dict[tuple[str, str], list[str]] = {}
    for entity in entities:
        for name, value in entity.values.items():
            pools.setdefault((entity.kind, name), []).append(value)
    texts = [value for values in pools.values() for value in values]
    texts += [text for kind in kinds.values() for attribute in kind.attributes for text in attribute.says]
    words = sorted({word.lower() for text in texts for word in WORD.findall(text)} - {"value", "it"})
    return Inventor(kinds=kinds, pools=pools, words=words, in_context=in_context)


def invent_scenes(inventor: Inventor, seed: int) -> Iterator[Scene]:
    """Scenes without end; the same seed gives the same ones."""
    rng = Random(seed)
    while True:
        scene = inventor.invent_scene(rng)
        if scene.questions:
            yield scene
