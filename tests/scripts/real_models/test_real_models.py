"""Where the real models are found: joined from a package's parts once, whole or not at all.

A package of three parts stands in for the installed one; its `assemble` does as that one's does.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from strata.engine.types import InputError
from strata.scripts import real_models
from strata.scripts.real_models import GEMMA3, find_gemma3

PARTS = (b"GGUF", b"middle", b"end")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The package, with `parts` to join and `joined`, how often that was done."""
    found = SimpleNamespace(parts=PARTS, joined=0)

    def assemble(path: Path, overwrite: bool = False) -> Path:
        if path.exists() and not overwrite:
            if path.read_bytes() != b"".join(PARTS):
                raise FileExistsError(f"{path} already exists with an unexpected sha256")
            return path
        found.joined += 1
        with path.open("wb") as file:
            for part in found.parts:
                if part is None:
                    raise FileNotFoundError("Missing chunk files: part03")
                file.write(part)
        return path

    found.assemble = assemble
    monkeypatch.setattr(real_models, "import_module", lambda name: found)
    return found


def test_parts_are_joined_once(package: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    first = find_gemma3(folder)
    assert first == folder / f"{GEMMA3}.gguf"
    assert first.read_bytes() == b"".join(PARTS)
    assert find_gemma3(folder) == first
    assert package.joined == 1


def test_the_users_cache_is_where_it_lies(
    package: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_gemma3() == tmp_path / "strata" / "models" / f"{GEMMA3}.gguf"


def test_a_join_that_stops_leaves_nothing(package: SimpleNamespace, tmp_path: Path) -> None:
    package.parts = (b"GGUF", None)
    with pytest.raises(InputError, match=r"part03; expected packages that `make real-models` installs"):
        find_gemma3(tmp_path)
    assert not list(tmp_path.iterdir())
    package.parts = PARTS
    assert find_gemma3(tmp_path).read_bytes() == b"".join(PARTS)


def test_another_file_in_its_place_is_told(package: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / f"{GEMMA3}.gguf").write_bytes(b"of mine")
    with pytest.raises(InputError, match="unexpected sha256") as caught:
        find_gemma3(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / f"{GEMMA3}.gguf").read_bytes() == b"of mine"


def test_a_package_that_is_absent_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(real_models, "import_module", missing)
    with pytest.raises(InputError, match="make real-models"):
        find_gemma3(tmp_path)
