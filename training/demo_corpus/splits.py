"""Splits the things into train, valid and test; what is held out is never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from strata.training.demo_corpus.entities import Entity

SPLITS = ("train", "valid", "test")
TEST_SHARE = 0.15
VALID_SHARE = 0.08


def split_entities(entities: Sequence[Entity], seed: int = 0) -> dict[str, list[Entity]]:
    """Things by split, the same shares of every kind; the same seed gives the same split.

    Args:
        entities: all things.
        seed: decides who goes where.

    Returns:
        `train`, `valid` and `test`, each in the order given.
    """
    place = {entity.name: split for kind in _kinds(entities) for entity, split in _split_kind(kind, seed)}
    return {split: [entity for entity in entities if place[entity.name] == split] for split in SPLITS}


def _kinds(entities: Sequence[Entity]) -> list[list[Entity]]:
    names = dict.fromkeys(entity.kind for entity in entities)
    return [[entity for entity in entities if entity.kind == name] for name in names]


def _split_kind(entities: list[Entity], seed: int) -> list[tuple[Entity, str]]:
    shuffled = Random(f"{seed} {entities[0].kind}").sample(entities, k=len(entities))
    num_test, num_valid = round(TEST_SHARE * len(entities)), round(VALID_SHARE * len(entities))
    splits = ["test"] * num_test + ["valid"] * num_valid
    splits += ["train"] * (len(entities) - len(splits))
    return list(zip(shuffled, splits, strict=True))
