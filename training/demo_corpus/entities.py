"""Things and what is known of them, loaded from kinds/*.yaml (how to speak of them) and facts/*.csv.

Owns the types of the corpus. Knows nothing of passages or questions.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from strata.engine.types import InputError

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Something known of each thing of a kind.

    `type` tells which attributes have values that could be mistaken for one another. `says` are clauses with
    {it} (the thing) and {value}; `asks` are questions with {name}.
    """

    name: str
    type: str
    says: tuple[str, ...]
    asks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of things: its noun, what stands for a name, and its attributes.

    `noun` has an article; `article` goes before a name in a sentence ("the " or nothing).
    """

    name: str
    noun: str
    article: str
    pronouns: tuple[str, ...]
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A thing: the name of its kind, its name, and its values by attribute (those that are known)."""

    kind: str
    name: str
    values: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """The value that a thing has for an attribute of its kind."""

    entity: Entity
    kind: Kind
    attribute: Attribute

    @property
    def value(self) -> str:
        """What is true of the thing."""
        return self.entity.values[self.attribute.name]


def facts_of(entity: Entity, kind: Kind) -> list[Fact]:
    """All that is known of a thing, in the order of its kind's attributes."""
    known = [attribute for attribute in kind.attributes if attribute.name in entity.values]
    return [Fact(entity=entity, kind=kind, attribute=attribute) for attribute in known]


def load_kinds(folder: Path = FOLDER / "kinds") -> dict[str, Kind]:
    """Every kind by its name, in the order of the file names."""
    return {path.stem: _read_kind(path) for path in sorted(folder.glob("*.yaml"))}


def load_entities(kinds: Mapping[str, Kind], folder: Path = FOLDER / "facts") -> list[Entity]:
    """Every thing of every kind, in the files' order.

    Raises:
        InputError: a file's columns are not the kind's attributes, a row has no name or too few values, or a
            name occurs twice.
    """
    entities = [entity for kind in kinds.values() for entity in _read_entities(kind, folder)]
    names: set[str] = set()
    for entity in entities:
        if entity.name.casefold() in names:
            raise InputError(f"{folder / entity.kind}.csv: {entity.name!r} occurs twice; expected it once")
        names.add(entity.name.casefold())
    return entities


def _read_kind(path: Path) -> Kind:
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    attributes = tuple(
        Attribute(name=name, type=row["type"], says=tuple(row["says"]), asks=tuple(row["asks"]))
        for name, row in fields["attributes"].items()
    )
    return Kind(
        name=path.stem,
        noun=fields["noun"],
        article=fields.get("article", ""),
        pronouns=tuple(fields["it"]),
        attributes=attributes,
    )


def _read_entities(kind: Kind, folder: Path) -> list[Entity]:
    path = folder / f"{kind.name}.csv"
    names = [attribute.name for attribute in kind.attributes]
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if reader.fieldnames != ["name", *names]:
            raise InputError(f"{path}: columns {reader.fieldnames}; expected {['name', *names]}")
        return [_read_row(row, kind, f"{path}: row {number}") for number, row in enumerate(reader, start=1)]


def _read_row(row: Mapping[str, str | None], kind: Kind, place: str) -> Entity:
    if None in row or None in row.values():
        raise InputError(f"{place}: expected {len(kind.attributes) + 1} cells")
    values = {name: value for name, value in row.items() if name != "name" and value}
    if not row["name"] or len(values) < 2:
        raise InputError(f"{place}: expected a name and two values or more")
    return Entity(kind=kind.name, name=row["name"], values=values)
