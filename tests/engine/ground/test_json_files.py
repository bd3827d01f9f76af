"""JSON files: what is refused, in one line that names the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from strata.engine.json_files import Schema, check_schema, parse_json, read_json, read_json_object
from strata.engine.types import InputError


class Shape(Schema):
    """A schema with one of each kind of rule."""

    layers: int = Field(gt=0, le=1000)
    rates: list[float] = Field(default_factory=list)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 65 + b"]" * 65, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b"", "Expecting value"),
        (b'{"a": 1} x', "Extra data"),
    ],
)
def test_text_that_is_not_sound_is_refused_by_name(data: bytes, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(data, "x.json", unique_keys=True)
    assert str(caught.value).startswith("x.json: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sound_text_is_read_with_or_without_a_byte_order_mark() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, null]}', "x") == {"a": [1, 2.5, None]}
    assert parse_json("[" * 64 + "]" * 64, "x") is not None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"layers": "5"}, "f: layers: input should be a valid integer, found '5'"),
        ({"layers": True}, "f: layers: input should be a valid integer, found True"),
        ({"layers": 0}, "f: layers: input should be greater than 0, found 0"),
        ({}, "f: layers: field required"),
        (
            {"layers": 1, "rates": [1.0, float("inf")]},
            "f: rates.1: input should be a finite number, found inf",
        ),
        ({"layers": 10**5000}, "f: layers: input should be less than or equal to 1000, found a number of"),
        ([1], "f: input should be a valid dictionary or instance of Shape, found [1]"),
    ],
)
def test_what_does_not_fit_a_schema_is_told_with_its_key(content: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        check_schema(Shape, content, "f")
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_a_key_of_many_characters_or_lines_is_cut() -> None:
    class Table(Schema):
        rows: dict[str, int]

    with pytest.raises(InputError) as caught:
        check_schema(Table, {"rows": {"a\nb" * 1000: "x"}}, "f")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_keys_that_a_schema_does_not_name_are_kept() -> None:
    checked = check_schema(Shape, {"layers": 3, "more": "x"}, "f")
    assert checked.layers == 3
    assert checked.model_dump()["more"] == "x"


def test_files_are_refused_by_size_kind_and_absence(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[1, 2, 3]")
    assert read_json(file) == [1, 2, 3]
    with pytest.raises(InputError, match=r"a\.json: 9 bytes; expected JSON of at most 8"):
        read_json(file, max_bytes=8)
    with pytest.raises(InputError, match=r"a\.json: holds a list; expected a JSON object"):
        read_json_object(file)
    with pytest.raises(InputError, match=r"b\.json: cannot be read \(No such file"):
        read_json(tmp_path / "b.json")


class PerLayer(Schema):
    """A key that holds one value or a list of them."""

    sizes: int | list[int | None] | None = None


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ("64", "f: sizes: input should be a valid integer, found '64'"),
        ([1, "x"], "f: sizes.1: input should be a valid integer, found 'x'"),
        ({"k" * 100: 1}, "f: sizes: input should be a valid integer, found {'kkk"),
    ],
)
def test_a_key_of_several_kinds_is_told_by_the_key_alone(sizes: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        check_schema(PerLayer, {"sizes": sizes}, "f")
    assert str(caught.value).startswith(told)
