"""Changes good inputs into odd ones: bytes, and values of JSON; the same for the same random numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

DEEP_MARK = "@deep@"
DIGITS_MARK = "@digits@"
MARKS = {DEEP_MARK: "[" * 5_000, DIGITS_MARK: "9" * 5_000}
"""What stands in the text where a value holds the mark: Python's own JSON cannot write these."""

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64 + 1, -(2**63), 1.5, -0.0, 1e308, float("inf"),
    float("nan"), "", " ", "0", "-1", "a\nb", "\x00", "\u2028", "\ud800", "x" * 300, "../../x", "/etc/passwd",
    "${x}", "{{ x }}", [], {}, [[]], [None], [1, "a"], {"": 0}, {"a": {"b": []}}, DEEP_MARK, DIGITS_MARK,
)  # fmt: skip

ODD_BYTES: tuple[bytes, ...] = (
    b"", b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b"'", b",", b"\\", b"\\u0000",
    b"{", b"}", b"[", b"]" * 9, b"[" * 500, b"{{", b"}}", b"{%", b"%}", b"&a", b"*a", b"!!python/object:x",
    b"<<:", b"0", b"-", b"1e999", b"9" * 5_000, b"NaN", b"null", b"true", b"\xed\xa0\x80", b"\x80" * 4,
    b"\xf0\x9f\x98\x80", b"#", b"|", b">", b"\t", b" " * 99, b"A" * 5_000, b"\xff" * 8, bytes(8),
)  # fmt: skip


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four changes of bytes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(BYTE_CHANGES)(rng, data)
    return data


def _flip(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return b"\x00"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _put(rng: random.Random, data: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + rng.choice(ODD_BYTES) + data[place + rng.choice((0, 0, 1, 8)) :]


def _cut(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    return data[:start] + data[end:] if rng.random() < 0.5 else data[:end]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start = rng.randint(0, len(data))
    piece = data[start : start + rng.choice((1, 9, 60))]
    place = rng.randint(0, len(data))
    return data[:place] + piece * rng.choice((1, 2, 50)) + data[place:]


BYTE_CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (_flip, _flip, _put, _put, _cut, _repeat)


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """One to three changes of the values of a JSON text; now and then of its bytes as well."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = change_value(rng, value)
    text = json.dumps(value)
    for mark, meant in MARKS.items():
        text = text.replace(f'"{mark}"', meant)
    changed = text.encode()
    return mutate_bytes(rng, changed) if rng.random() < 0.2 else changed


def change_value(rng: random.Random, value: Any) -> Any:
    """The value with one place of it changed; the value itself is left as it is."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        return _change_object(rng, value)
    if isinstance(value, list) and value and rng.random() < 0.8:
        return _change_list(rng, value)
    if isinstance(value, str) and rng.random() < 0.3:
        return mutate_bytes(rng, value.encode("utf-8", "replace")).decode("utf-8", "replace")
    if isinstance(value, (int, float)) and rng.random() < 0.4:
        return rng.choice((-value, value + 1, value - 1, value * 1_000_003, float(value), str(value)))
    return rng.choice(ODD_VALUES)


def _change_object(rng: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    changed, name = dict(value), rng.choice(list(value))
    kind = rng.random()
    if kind < 0.15:
        del changed[name]
    elif kind < 0.25:
        changed[change_name(rng, name)] = changed.pop(name)
    elif kind < 0.3:
        changed[change_name(rng, name)] = rng.choice(ODD_VALUES)
    else:
        changed[name] = change_value(rng, value[name])
    return changed


def change_name(rng: random.Random, name: str) -> str:
    """A key that is much like it, or not at all."""
    return rng.choice((name.upper(), name + "x", name[:-1], "", "../" + name, "/" + name, "a\nb", name * 99))


def _change_list(rng: random.Random, value: list[Any]) -> list[Any]:
    changed, place = list(value), rng.randrange(len(value))
    kind = rng.random()
    if kind < 0.15:
        del changed[place]
    elif kind < 0.25:
        changed.insert(place, rng.choice(ODD_VALUES))
    elif kind < 0.3:
        changed = changed * rng.choice((0, 2, 30))
    else:
        changed[place] = change_value(rng, value[place])
    return changed


def mutate_json_lines(rng: random.Random, data: bytes) -> bytes:
    """Changes the values of one line, or the bytes of the whole."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    lines = data.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    lines[place] = mutate_json(rng, lines[place]) + b"\n"
    return b"".join(lines)


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Changes the header's values and says how long it is now, or any bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
