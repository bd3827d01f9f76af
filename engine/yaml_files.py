"""YAML that people write by hand: plain values, and the line and column of each for messages.

Data flow: text -> `read_yaml`: values, and a place for every key and item -> `override` (a.b=c) ->
`YamlFile.fit`: an object of a pydantic schema, or one line such as
`config.yaml:12:7: members.big.head: ...`. Knows no file format of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from strata.engine.files import read_utf8
from strata.engine.json_files import AnySchema, MisfitError, fit_schema, shown
from strata.engine.types import InputError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000
"""After aliases are followed: these can expand without end."""

UNFIT = re.compile("[\0\ud800-\udfff]")
"""What neither a path nor a UTF-8 file can hold, though an escape may ask for it."""
MERGE_TAG = "tag:yaml.org,2002:merge"

Keys = tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class YamlFile:
    """The values of a YAML file.

    Attributes:
        path: the file.
        values: mappings, lists, texts, numbers, booleans and None.
        places: line and column, from 1, of values by the keys that lead to them.
    """

    path: Path
    values: Any
    places: dict[Keys, tuple[int, int]]

    def error(self, keys: Keys, message: str) -> InputError:
        """An error about the value at some keys; it names the nearest place that the file has."""
        known = next((keys[:size] for size in range(len(keys), -1, -1) if keys[:size] in self.places), None)
        where = str(self.path) if known is None else ":".join(map(str, (self.path, *self.places[known])))
        name = ".".join(str(key) for key in keys)
        return InputError(f"{where}: {name + ': ' if name else ''}{message}")

    def fit(self, schema: type[AnySchema]) -> AnySchema:
        """The values as an object of a schema.

        Raises:
            InputError: the first value that does not fit, with its place.
        """
        try:
            return fit_schema(schema, self.values)
        except MisfitError as misfit:
            raise self.error(misfit.path, str(misfit)) from None


def read_yaml(path: Path) -> YamlFile:
    """Reads a YAML file that holds a mapping; aliases and merges are followed, within bounds.

    Raises:
        InputError: unreadable, not YAML, a key that is there twice, or too large or deep.
    """
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes; expected YAML of at most {MAX_BYTES}")
    try:
        text = read_utf8(path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values, places = _Values(path).of(node)
    except yaml.YAMLError as error:
        raise _explain(path, error) from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; expected at most {MAX_DEPTH} levels") from None
    if not isinstance(values, dict):
        held = "nothing" if values is None else shown(values)
        raise InputError(f"{path}: holds {held}; expected a YAML mapping")
    return YamlFile(path=path, values=values, places=places)


def override(file: YamlFile, settings: Sequence[str]) -> YamlFile:
    """The file with settings such as `members.big.dtype=int8` put in; values are read as YAML.

    Raises:
        InputError: a setting without `=`, or one that leads through something that is no mapping or list.
    """
    values = file.values
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not all(name.split(".")):
            raise InputError(f"--set {setting!r}: expected KEY.KEY=VALUE")
        values = _put(values, name.split("."), _read_value(name, text), setting)
    return replace(file, values=values)


def _read_value(name: str, text: str) -> Any:
    """The value of a setting, within the bounds of a file."""
    where = f"--set {shown(name)}"
    try:
        return _Values(Path(where)).of(yaml.compose(text, Loader=yaml.SafeLoader))[0]
    except yaml.YAMLError:
        raise InputError(f"{where}: {shown(text)} is no YAML value") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply; expected at most {MAX_DEPTH} levels") from None


def _put(values: Any, keys: Sequence[str], value: Any, setting: str) -> Any:
    """A copy of the values with one of them replaced."""
    key, *rest = keys
    if isinstance(values, list):
        if not key.isdecimal() or int(key) >= len(values):
            raise InputError(f"--set {setting!r}: {key} is no item of a list of {len(values)}")
        changed = list(values)
        changed[int(key)] = _put(values[int(key)], rest, value, setting) if rest else value
        return changed
    if values is not None and not isinstance(values, dict):
        raise InputError(f"--set {setting!r}: {shown(values)} has no key {key}")
    known = dict(values or {})
    known[key] = _put(known.get(key), rest, value, setting) if rest else value
    return known


def _explain(path: Path, error: yaml.YAMLError) -> InputError:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or str(error)
    return InputError(f"{where}: not valid YAML ({' '.join(str(problem).split())})")


class _Values:
    """Turns YAML nodes into values and their places."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._constructor = yaml.constructor.SafeConstructor()
        self._places: dict[Keys, tuple[int, int]] = {}
        self._num_nodes = 0
        self._merged: dict[yaml.Node, dict[str, yaml.Node]] = {}

    def of(self, node: yaml.Node | None) -> tuple[Any, dict[Keys, tuple[int, int]]]:
        """The value of the whole document, None for an empty one, and the places of all values in it."""
        return (None if node is None else self._value(node, ())), self._places

    def _value(self, node: yaml.Node, keys: Keys) -> Any:
        self._num_nodes += 1
        where = self._where(node)
        if self._num_nodes > MAX_NODES or len(keys) > MAX_DEPTH:
            raise InputError(f"{where}: expected at most {MAX_NODES:,} values and {MAX_DEPTH} levels")
        self._places[keys] = (node.start_mark.line + 1, node.start_mark.column + 1)
        if isinstance(node, yaml.MappingNode):
            return {key: self._value(value, (*keys, key)) for key, value in self._items(node).items()}
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*keys, place)) for place, item in enumerate(node.value)]
        return self._scalar(node, where)

    def _scalar(self, node: yaml.Node, where: str) -> Any:
        try:
            value = self._constructor.construct_object(node)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{where}: {shown(node.value)} is no value ({error})") from None
        if isinstance(value, str) and UNFIT.search(value):
            raise InputError(f"{where}: {shown(value)} holds a NUL or half a surrogate; expected UTF-8 text")
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        return node.value  # dates and the like stay as they are written

    def _items(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        """A mapping's items by key, as text, its own before those merged in.

        Each mapping is merged once, however often it is named: else a few lines could expand without end.
        """
        if node not in self._merged:
            # A mapping that merges itself finds nothing there.
            self._merged[node] = {}
            found = self._own_items(node)
            for merge in (value for key, value in node.value if key.tag == MERGE_TAG):
                for mapping in self._mappings_in(merge):
                    for name, value in self._items(mapping).items():
                        found.setdefault(name, value)
            self._merged[node] = found
        return self._merged[node]

    def _own_items(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        items: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.tag == MERGE_TAG:
                continue
            if str(key.value) in items:
                raise InputError(f"{self._where(key)}: the key {shown(key.value)} is there twice")
            items[str(key.value)] = value
        return items

    def _mappings_in(self, node: yaml.Node) -> list[yaml.MappingNode]:
        """What `<<` names: a mapping, or a list of them, of which the first counts most."""
        mappings = []
        for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(one, yaml.MappingNode):
                raise InputError(f"{self._where(one)}: expected a mapping, or a list of them, behind <<")
            mappings.append(one)
        return mappings

    def _where(self, node: yaml.Node) -> str:
        return f"{self._path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
