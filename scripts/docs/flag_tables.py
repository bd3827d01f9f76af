"""docs/flags.md: every flag of every command, from the dataclasses that the command line is made of."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from strata.scripts import cli

HEAD = """# Flags

Made by `make docs-pages` from the dataclasses that the command line is made of; `strata COMMAND --help` says
the same. A flag that may be repeated is marked with `...`.
"""
POSITIONAL = tyro.conf.Positional[int]
HIDDEN = ("progress",)
"""Settings that the command line makes itself."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A row of the page."""

    name: str
    values: str
    default: str
    about: str


def flags_page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(_section(name, command) for name, command in commands())])


def flags_of(config: type, *, paired: bool = False) -> Iterator[Flag]:
    """A config class's flags in order, those of the parts where the part stands.

    Args:
        config: a dataclass.
        paired: a setting that is on or off has a flag for both.
    """
    hints = get_type_hints(config, include_extras=True)
    about = field_docs(config)
    for known in fields(config):
        kind = hints[known.name]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from flags_of(kind, paired=paired)
        elif known.name not in HIDDEN:
            yield Flag(
                name=_name(known, kind, paired=paired),
                values=_values(kind),
                default=_default(known),
                about=about.get(known.name, ""),
            )


def field_docs(config: type) -> dict[str, str]:
    """The string below each field of a class and of its bases, on one line."""
    found: dict[str, str] = {}
    for base in reversed([base for base in config.__mro__ if is_dataclass(base)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                found[ast.unparse(field.target)] = " ".join(text.split())
    return found


def commands() -> list[tuple[str, Callable[..., int]]]:
    """The functions of the command line that take settings, as they stand there."""
    found = [
        function
        for _, function in inspect.getmembers(cli, inspect.isfunction)
        if function.__module__ == cli.__name__ and "config" in inspect.signature(function).parameters
    ]
    found.sort(key=lambda function: function.__code__.co_firstlineno)
    return [(function.__name__.replace("_", "-"), function) for function in found]


def _section(name: str, command: Callable[..., int]) -> str:
    summary = (inspect.getdoc(command) or "").split("\n\n")[0].replace("\n", " ")
    lines = [f"## strata {name}", "", summary, "", "| flag | values | default | |", "|---|---|---|---|"]
    hints = get_type_hints(command, include_extras=True)
    paired = tyro.conf.FlagCreatePairsOff not in cli.PARSING_OF.get(name, cli.PARSING)
    rows = map(_safe, flags_of(hints["config"], paired=paired))
    lines += [f"| {flag.name} | {flag.values} | {flag.default} | {flag.about} |" for flag in rows]
    return "\n".join(lines) + "\n"


def _safe(flag: Flag) -> Flag:
    """The flag with what Markdown would take for the end of a cell escaped."""
    return Flag(**{name: text.replace("|", "\\|") for name, text in dataclasses.asdict(flag).items()})


def _name(known: Field, kind: Any, *, paired: bool) -> str:
    name = known.name
    if get_origin(kind) is Annotated and any(mark in get_args(POSITIONAL)[1:] for mark in get_args(kind)[1:]):
        return name.upper()
    if kind is bool and (known.default is True or paired):
        off = f"`--no-{name.replace('_', '-')}`"
        return f"`--{name.replace('_', '-')}`, {off}" if paired else off
    more = " ..." if get_origin(kind) is tuple else ""
    return f"`--{name.replace('_', '-')}`{more}"


def _values(kind: Any) -> str:
    """What a flag takes, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _values(parts[0])
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return _values(next(part for part in parts if part is not type(None)))
    if origin is tuple:
        return _values(parts[0])
    if kind is bool:
        return ""
    return {int: "whole number", float: "number", str: "text", Path: "path"}.get(kind, str(kind))


def _default(known: Field) -> str:
    if known.default is not MISSING:
        value = known.default
    elif known.default_factory is not MISSING:
        value = known.default_factory()
    else:
        return "needed"
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on without it" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
