"""The shape of the house: where packages live, who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from .house import ALLOWED, APART, COMMANDING, FORBIDDEN_MODULES, MAX_LINES, MAX_PYTHON_FILES, ROWS

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "kernels", "training", "retrieval", "scripts")


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("strata", *(part for part in parts if part != "__init__")))


def absolute_base(path: Path, node: ast.ImportFrom) -> str:
    """The module a `from` import names, its leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    package = ("strata", *path.relative_to(ROOT).parent.parts)
    parents = package[: len(package) - node.level + 1]
    return ".".join((*parents, *([node.module] if node.module else [])))


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


@functools.cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """Every module of ours a file imports, wherever in the file, as a full dotted name."""
    return tuple(_imported_modules(path))


def _imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(path, node)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield submodule if base.startswith("strata") and is_module(submodule) else base


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in the repository root, which `-c` puts first on sys.path."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_no_folder_has_a_top_level_init(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists(), (
        "it would shadow packages such as Hugging Face's kernels"
    )


def test_our_kernels_folder_does_not_shadow_the_kernels_package() -> None:
    done = run_python("import transformers.integrations.hub_kernels")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", PACKAGES)
def test_package_is_importable_and_is_this_checkout(folder: str) -> None:
    package = importlib.import_module(f"strata.{folder}")
    assert ROOT / folder in [Path(place) for place in package.__path__]


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_follow_the_rules(folder: str) -> None:
    wrong = [
        f"{module_name(path)} imports {module}"
        for path in python_files(folder)
        for module in imported_modules(path)
        if is_within(module, "strata") and not any(is_within(module, allowed) for allowed in ALLOWED[folder])
    ]
    assert wrong == []


def room_of(folder: str, module: str) -> str | None:
    """The room of a folder that a module lies in; None outside of the folder."""
    prefix = f"strata.{folder.replace('/', '.')}."
    return module.removeprefix(prefix).split(".")[0] if module.startswith(prefix) else None


def arrows(folder: str) -> Iterator[tuple[str, str, str]]:
    """(room, room that it imports, which module imports which) inside a folder."""
    for path in python_files(folder):
        module = module_name(path)
        for imported in imported_modules(path):
            room, other = room_of(folder, module), room_of(folder, imported)
            if room is not None and other is not None and room != other:
                yield room, other, f"{module} imports {imported}"


@pytest.mark.parametrize("folder", ROWS)
def test_every_room_has_a_row(folder: str) -> None:
    found = {path.stem for path in (ROOT / folder).glob("*.py")}
    found |= {path.name for path in (ROOT / folder).iterdir() if any(path.rglob("*.py"))}
    assert found == set(" ".join(ROWS[folder]).split())


@pytest.mark.parametrize("folder", ROWS)
def test_rooms_import_rooms_of_earlier_rows_only(folder: str) -> None:
    row_of = {room: number for number, row in enumerate(ROWS[folder]) for room in row.split()}
    assert [told for room, other, told in arrows(folder) if row_of[other] >= row_of[room]] == []


def test_rooms_that_are_apart_do_not_import_each_other() -> None:
    apart = set(APART)
    wrong = [
        told for folder in ROWS for room, other, told in arrows(folder) if (folder, room, other) in apart
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FORBIDDEN_MODULES)
def test_what_a_folder_must_not_know(folder: str) -> None:
    wrong = [
        f"{module_name(path)} imports {module}"
        for path in python_files(folder)
        for module in imported_modules(path)
        if any(is_within(module, forbidden) for forbidden in FORBIDDEN_MODULES[folder])
    ]
    assert wrong == []


def test_no_circle_of_modules() -> None:
    graph: dict[str, set[str]] = {}
    for path in (path for folder in PACKAGES for path in python_files(folder)):
        ours = {module for module in imported_modules(path) if is_within(module, "strata")}
        graph[module_name(path)] = ours - {module_name(path)}
    assert list(TopologicalSorter(graph).static_order()), "a circle raises CycleError"


def test_public_classes_have_names_of_their_own() -> None:
    names = Counter(
        node.name
        for path in (path for folder in PACKAGES for path in python_files(folder))
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_docstrings_tell_and_do_not_command() -> None:
    commands = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {text.splitlines()[0]}"
        for path in (path for folder in PACKAGES for path in python_files(folder))
        # Help texts of commands and of their flags speak to a user.
        if path.name != "cli.py"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node) or "").split(maxsplit=1)[:1]
        if text.split(maxsplit=1)[0].rstrip(".,;:") in COMMANDING.split()
    ]
    assert commands == []


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_folders_hold_few_files(folder: str) -> None:
    counts = Counter(path.parent for path in python_files(folder))
    crowded = {
        str(path.relative_to(ROOT)): count for path, count in counts.items() if count > MAX_PYTHON_FILES
    }
    assert crowded == {}


@pytest.mark.parametrize("folder", PACKAGES)
def test_own_modules_are_imported_by_their_full_name(folder: str) -> None:
    bare = [
        f"{module_name(path)} imports {module}"
        for path in python_files(folder)
        for module in imported_modules(path)
        if module.split(".")[0] in (*PACKAGES, "tests") and module != "kernels"
    ]
    assert bare == []


def test_relative_imports_are_resolved() -> None:
    node = ast.parse("from ..types import Question").body[0]
    assert isinstance(node, ast.ImportFrom)
    assert absolute_base(ROOT / "engine" / "formats" / "nf4.py", node) == "strata.engine.types"


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_files_stay_short(folder: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files(folder)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["plan", "--help"]], ids=" ".join)
def test_help_loads_no_torch(arguments: list[str]) -> None:
    if not (ROOT / "scripts" / "cli.py").is_file():
        pytest.skip("scripts/cli.py is not written yet")
    code = f"""
import sys
from strata.scripts.cli import main
sys.argv = ["strata", *{arguments!r}]
try:
    status = main()
except SystemExit as end:
    status = end.code
assert not status, status
heavy = {{"torch", "transformers", "peft"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
