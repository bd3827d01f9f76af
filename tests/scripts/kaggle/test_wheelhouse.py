"""Which wheels are shipped: what the image lacks, with all that brings, and nothing that it has."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from strata.engine.types import InputError
from strata.scripts.kaggle.wheelhouse import IMAGE, PINS, fill_wheelhouse, is_met, read_image

PURE = "py3-none-any"
KERNEL = "cp312-cp312-manylinux_2_28_x86_64"


def make_wheel(folder: Path, name: str, version: str, *requires: str, tag: str = PURE) -> Path:
    """A wheel without modules: metadata is all that pip needs to hand it out."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path) -> Path:
    """A folder that plays a package index."""
    folder = tmp_path / "index"
    make_wheel(folder, "needed_flags", "1.0.17", "brought>=2; python_version >= '3.12'", "torch>=2.8")
    make_wheel(folder, "brought", "2.1", "numpy", "colorama; sys_platform == 'win32'")
    make_wheel(folder, "fast_search", "0.27.0", tag=KERNEL)
    make_wheel(folder, "fast_search", "0.28.0", tag="cp312-cp312-win_amd64")
    make_wheel(folder, "numpy", "2.9")
    return folder


@pytest.fixture
def ours(tmp_path) -> Path:
    return make_wheel(
        tmp_path / "made",
        "strata_score",
        "0.1.0",
        "torch>=2.8",
        "needed-flags>=1",
        "fast-search>=0.26; extra == 'retrieval'",
        "numpy>=2.5; extra == 'newer'",
    )


@pytest.fixture
def image(tmp_path) -> dict:
    file = tmp_path / "image.txt"
    file.write_text(
        "# what pip freeze prints\ntorch==2.10.0+cu128\nNumPy==2.0.2\n"
        "cucim-cu12 @ https://example.com/cucim_cu12-26.2.0.whl\n",
        encoding="utf-8",
    )
    return read_image(file)


@pytest.mark.parametrize(
    ("extras", "names"),
    [
        ([], ["strata_score-0.1.0", "needed_flags-1.0.17", "brought-2.1"]),
        (
            ["retrieval"],
            ["strata_score-0.1.0", "needed_flags-1.0.17", "fast_search-0.27.0", "brought-2.1"],
        ),
        # The image has it, but too old.
        (["newer"], ["strata_score-0.1.0", "needed_flags-1.0.17", "numpy-2.9", "brought-2.1"]),
    ],
)
def test_what_the_image_lacks_is_shipped(ours, index, image, tmp_path, extras, names):
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    found = fill_wheelhouse(ours, extras, folder, image, index)
    assert ["-".join(path.name.split("-")[:2]) for path in found] == names
    assert sorted(folder.iterdir()) == sorted(found)


def test_a_wheel_that_is_not_to_be_had(ours, index, image, tmp_path):
    next(index.glob("brought*")).unlink()
    (tmp_path / "wheelhouse").mkdir()
    with pytest.raises(InputError, match=r"^brought>=2: no wheel for Python 3.12 from .*index: "):
        fill_wheelhouse(ours, [], tmp_path / "wheelhouse", image, index)


def test_what_is_no_wheel(image, tmp_path):
    (tmp_path / "strata_score-0.1.0-py3-none-any.whl").write_text("no")
    (tmp_path / "wheelhouse").mkdir()
    with pytest.raises(InputError, match="not a wheel"):
        fill_wheelhouse(tmp_path / "strata_score-0.1.0-py3-none-any.whl", [], tmp_path / "wheelhouse", image)


def test_an_image_file_that_is_none(tmp_path):
    file = tmp_path / "image.txt"
    file.write_text("torch==2.10.0\ntorch 2.10\n")
    with pytest.raises(InputError, match=r"image\.txt:2: 'torch 2\.10'; expected NAME==VERSION"):
        read_image(file)


def test_the_image_that_strata_knows_meets_what_it_asks_for_and_what_it_lacks_is_pinned():
    image, pins = read_image(None), read_image(PINS)
    assert not set(image) & set(pins), f"{IMAGE.name} and {PINS.name} name the same packages"
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.split("\ndependencies = [\n")[1].split("\n]")[0]
    wanted = [Requirement(line.strip().strip('",')) for line in listed.splitlines()]
    assert [str(one) for one in wanted if not is_met(one, image)] == ["tyro<2,>=1.0"]
    assert all(is_met(one, pins) for one in wanted if not is_met(one, image))
