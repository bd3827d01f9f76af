"""JSON that was checked before anybody uses it: encoding, size, depth and digits first, then a schema.

Data flow: bytes -> `parse_json`: plain values, or one line that names the file -> `check_schema`: an object
of a pydantic model, or one line that names the file, the key and the value. Knows no file format of its own:
each room keeps the schemas of what it reads.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from strata.engine.types import InputError

MAX_BYTES = 256 << 20
MAX_DEPTH = 64
SHOWN_CHARACTERS = 60


class Schema(BaseModel):
    """A base for schemas: types are not coerced, keys that it does not name are kept and not looked at."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


AnySchema = TypeVar("AnySchema", bound=Schema)


def read_json(path: Path, *, max_bytes: int = MAX_BYTES, unique_keys: bool = False) -> Any:
    """The values of a JSON file.

    Args:
        path: the file.
        max_bytes: a larger file is refused unread.
        unique_keys: refuse an object that has a key twice, of which Python would keep the last.

    Raises:
        InputError: unreadable, too large, not UTF-8, not JSON, or nested too deeply.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise InputError(f"{path}: {size} bytes; expected JSON of at most {max_bytes}")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_json(data, str(path), unique_keys=unique_keys)


def read_json_object(path: Path, *, max_bytes: int = MAX_BYTES, unique_keys: bool = False) -> dict[str, Any]:
    """The values of a JSON file that holds one object; arguments and errors are those of `read_json`.

    Raises:
        InputError: as `read_json`, or it holds something else.
    """
    content = read_json(path, max_bytes=max_bytes, unique_keys=unique_keys)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; expected a JSON object")
    return content


def read_json_lines(path: Path) -> list[tuple[str, Any]]:
    """The values of a file of JSON lines that a run appends to, each with its place for messages.

    A last line without an end was cut off by a crash and is left out (see `cut_torn_line`).

    Raises:
        InputError: unreadable, or a line that is no JSON (names the line).
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    places = [f"{path}, line {number}" for number in range(1, len(lines) + 1)]
    return [(place, parse_json(line, place)) for place, line in zip(places, lines, strict=True)]


def cut_torn_line(path: Path) -> None:
    """Takes away a last line without an end, so that lines appended from now on stay whole."""
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def parse_json(data: bytes | str, where: str, *, unique_keys: bool = False) -> Any:
    """The values of a JSON text.

    Args:
        data: the text, or its bytes as UTF-8, with or without a byte order mark.
        where: what the error begins with: a file, and the line where that helps.
        unique_keys: refuse an object that has a key twice.

    Raises:
        InputError: not UTF-8, not JSON, a number of thousands of digits, or nested deeper than MAX_DEPTH.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:
        raise InputError(f"{where}: cannot be read as JSON ({error})") from None
    if _is_deeper(content, MAX_DEPTH):
        raise _too_deep(where)
    return content


def check_schema(schema: type[AnySchema], content: object, where: str) -> AnySchema:
    """The content as an object of the schema.

    Args:
        schema: what is expected.
        content: plain values, as `read_json` gives them.
        where: what the error begins with, usually the file.

    Raises:
        InputError: the first thing that does not fit: the key's path, what is expected, what was found.
    """
    try:
        return fit_schema(schema, content)
    except MisfitError as misfit:
        key = ".".join(_shown_part(part) for part in misfit.path)
        raise InputError(f"{where}: {key + ': ' if key else ''}{misfit}") from None


class MisfitError(ValueError):
    """The first value that does not fit a schema: the keys to it, and what is expected and was found."""

    def __init__(self, path: tuple[int | str, ...], message: str) -> None:
        super().__init__(message)
        self.path = path


def fit_schema(schema: type[AnySchema], content: object) -> AnySchema:
    """The content as an object of the schema, for callers who say themselves where a value is.

    Raises:
        MisfitError: the first thing that does not fit.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first, path = _most_telling(error, content)
        expected = _expected(first)
        found = "" if first["type"] == "missing" else f", found {shown(first['input'])}"
        raise MisfitError(tuple(path), f"{expected}{found}") from None


def check_fields(settings: object, kind: type, elsewhere: Mapping[str, object] | None = None) -> None:
    """Checks that the fields of settings which a caller's own code has made are of the types they say.

    Args:
        settings: an object of a dataclass.
        kind: the dataclass whose fields are checked.
        elsewhere: what stands for types that only type checkers import, by name.

    Raises:
        InputError: the first field that holds something else.
    """
    for name, adapter in _adapters_of(kind, tuple((elsewhere or {}).items())):
        value = getattr(settings, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            expected = _expected(error.errors(include_url=False)[0])
            raise InputError(f"{kind.__name__}.{name}: {expected}, found {shown(value)}") from None


@functools.cache
def _adapters_of(
    kind: type, elsewhere: tuple[tuple[str, object], ...]
) -> list[tuple[str, TypeAdapter[object]]]:
    hints = get_type_hints(kind, localns=dict(elsewhere))
    return [(name, TypeAdapter(hint)) for name, hint in hints.items()]


def _expected(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _most_telling(error: ValidationError, content: object) -> tuple[ErrorDetails, list[int | str]]:
    """The first error and its keys; of a key that may hold this or that, the one that reaches deepest."""
    found = error.errors(include_url=False)
    if found[0]["loc"][-1:] == ("[key]",):
        return found[0], _path(content, found[0])
    of_first_key = [detail for detail in found if detail["loc"][:1] == found[0]["loc"][:1]]
    paths = [_path(content, detail) for detail in of_first_key]
    deepest = max(range(len(paths)), key=lambda place: len(paths[place]))
    return of_first_key[deepest], paths[deepest]


def _path(content: object, detail: ErrorDetails) -> list[int | str]:
    """The keys to the value in question, without pydantic's names for the kinds that it may be of."""
    path: list[int | str] = []
    for place, part in enumerate(detail["loc"], start=1):
        is_key = isinstance(content, dict) and part in content
        is_index = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if is_key or is_index:
            content = content[part]  # type: ignore[index]
        elif detail["type"] != "missing" or place < len(detail["loc"]):
            continue
        path.append(part)
    return path


def shown(value: object) -> str:
    """A value for an error message: on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _shown_part(part: int | str) -> str:
    text = str(part)
    return text if text.isprintable() and len(text) <= SHOWN_CHARACTERS else shown(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {shown(key)} is there twice")
        values[key] = value
    return values


def _is_deeper(content: object, max_depth: int) -> bool:
    level: list[object] = [content]
    for _ in range(max_depth):
        level = [value for item in level for value in _values(item) if isinstance(value, (dict, list))]
        if not level:
            return False
    return True


def _values(item: object) -> Iterable[object]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _too_deep(where: str) -> InputError:
    return InputError(f"{where}: nested too deeply; expected JSON of at most {MAX_DEPTH} levels")
