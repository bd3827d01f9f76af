"""Writes a passage on a thing: its facts in shuffled order, varied sentences. Knows nothing of questions."""

from __future__ import annotations

from random import Random

from strata.training.demo_corpus.entities import Entity, Kind, facts_of

IT = "{it} "
NAME_SHARE = 0.6
"""How many sentences after the first have the name as subject; the others have a pronoun or the like."""


def write_passage(entity: Entity, kind: Kind, rng: Random, max_facts: int | None = None) -> str:
    """Two to five sentences that state the thing's facts.

    Args:
        entity: what the passage is about.
        kind: its kind.
        rng: decides order and wording.
        max_facts: the most facts to state; None for all.

    Returns:
        The text, without a title.
    """
    facts = facts_of(entity, kind)
    rng.shuffle(facts)
    clauses = [rng.choice(fact.attribute.says).replace("{value}", fact.value) for fact in facts[:max_facts]]
    sentences = [_open(entity, kind, clauses, rng)]
    while clauses:
        has_name = rng.random() < NAME_SHARE
        subject = f"{kind.article}{entity.name}" if has_name else rng.choice(kind.pronouns)
        sentences.append(_sentence(subject, _take_clause(clauses, rng)))
    return " ".join(sentences)


def _open(entity: Entity, kind: Kind, clauses: list[str], rng: Random) -> str:
    form = rng.randrange(3)
    subject = f"{kind.article}{entity.name}"
    if form == 0:
        return _sentence(subject, _take_clause(clauses, rng))
    if form == 1 and clauses[0].startswith(IT):
        return _sentence(subject, f"{{it}} is {kind.noun} that {clauses.pop(0)[len(IT) :]}")
    return _sentence(subject, f"{{it}} is {kind.noun}")


def _take_clause(clauses: list[str], rng: Random) -> str:
    """One clause, or two with one subject."""
    clause = clauses.pop(0)
    if clauses and clauses[0].startswith(IT) and rng.random() < 0.4:
        clause = f"{clause} and {clauses.pop(0)[len(IT) :]}"
    return clause


def _sentence(subject: str, clause: str) -> str:
    text = clause.replace("{it}", subject)
    return f"{text[0].upper()}{text[1:]}."
