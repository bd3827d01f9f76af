"""The shape of the house: where packages live, who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "kernels", "training", "retrieval", "scripts")
MAX_LINES = 400

# Whose modules a folder may import; scripts composes all of them.
ALLOWED = {
    "kernels": ("strata.kernels",),
    "engine": ("strata.engine", "strata.kernels"),
    "training": ("strata.training", "strata.engine"),
    "retrieval": ("strata.retrieval", "strata.engine.types"),
}


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


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


def imported_modules(path: Path) -> Iterator[str]:
    """Every module of ours a file imports, wherever in the file, as a full dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
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
