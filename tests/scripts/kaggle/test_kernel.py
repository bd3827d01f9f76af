"""On the kernel: the user's pipeline becomes one for the machine that is there."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from strata.engine.types import InputError
from strata.scripts.kaggle import kernel
from strata.scripts.kaggle.cells import Places
from strata.scripts.kaggle.kernel import RERUN, Card, prepare

T4, A100, P100 = (
    Card(capability=7.5, trouble=None),
    Card(capability=8.0, trouble=None),
    Card(capability=6.0, trouble="this torch has no code for compute capability 6.0"),
)
PIPELINE = """\
members:
  small: {model: /kaggle/input/tiny, head: letters}
  big: {model: /kaggle/input/tiny, machine: {dtype: bfloat16}, head: yes-no}
  exact: {model: /kaggle/input/tiny, machine: {dtype: float32}, head: yes-no, label: x}
"""
SETTINGS = {
    "pipeline": "strata-kernel-pipeline.yaml",
    "questions": "test.csv",
    "deadline": "8.5h",
    "commit_deadline": "6m",
    "is_competition": True,
}


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    names = ("input/datasets/me/tiny", "input/datasets/me/run-wheels", "input/competitions/exam")
    for name in (*names, "working", "scratch"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "input/datasets/me/tiny/config.json").touch()
    (tmp_path / "input/competitions/exam/test.csv").touch()
    monkeypatch.setenv(RERUN, "1")
    return Places(input=tmp_path / "input", working=tmp_path / "working", scratch=tmp_path / "scratch")


def prepared(places: Places, cards: list[Card], pipeline: str = PIPELINE, ago_s: float = 0.0, **settings):
    """The values of the pipeline that is left for a machine."""
    wheels = places.input / "datasets/me/run-wheels"
    (wheels / SETTINGS["pipeline"]).write_text(pipeline, encoding="utf-8")
    (wheels / "strata-kernel.json").write_text(json.dumps(SETTINGS | settings), encoding="utf-8")
    file, questions = prepare(wheels / "strata-kernel.json", time.time() - ago_s, places, cards)
    assert questions == places.input / "competitions/exam/test.csv"
    assert file.parent == places.working
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def test_paths_are_those_of_the_mounts(places):
    values = prepared(places, [])
    assert {member["model"] for member in values["members"].values()} == {
        str(places.input / "datasets/me/tiny")
    }


@pytest.mark.parametrize(
    ("cards", "shared", "big"),
    [
        ([T4, T4], "float16", "float16"),
        ([A100], None, "bfloat16"),
        ([A100, T4], "float16", "float16"),
        ([], None, "bfloat16"),
    ],
)
def test_float16_where_bfloat16_is_emulated(places, cards, shared, big):
    values = prepared(places, cards)
    assert values["machine"].get("dtype") == shared
    assert values["members"]["big"]["machine"]["dtype"] == big
    assert values["members"]["exact"]["machine"]["dtype"] == "float32"
    assert "machine" not in values["members"]["small"]


def test_int8_stays_int8(places):
    assert prepared(places, [T4], PIPELINE + "machine: {dtype: int8}\n")["machine"]["dtype"] == "int8"


def test_cards_that_torch_cannot_use_are_not_used(places, capsys):
    assert prepared(places, [P100])["machine"]["devices"] == "cpu"
    assert "RUNNING ON THE CPU: this torch has no code" in capsys.readouterr().out


def test_the_cache_is_on_the_scratch_disk_unless_it_is_full_or_another_is_wanted(places, monkeypatch):
    assert prepared(places, [])["machine"]["cache_dir"] == str(places.scratch / "strata-cache")
    assert prepared(places, [], PIPELINE + "machine: {cache_dir: x}\n")["machine"]["cache_dir"] == "x"
    monkeypatch.setattr(kernel, "SMALLEST_CACHE_BYTES", 1 << 62)
    assert "cache_dir" not in prepared(places, [])["machine"]


@pytest.mark.parametrize(
    ("is_rerun", "is_competition", "own", "expected_s"),
    [
        (True, True, "", 8.5 * 3600 - 100),
        (False, True, "", 360 - 100),
        (False, False, "", 8.5 * 3600 - 100),
        (True, True, "deadline: 2h\n", 2 * 3600 - 100),
        (False, True, "deadline: 2m\n", 20),
        (True, True, "deadline: 50s\n", 1),
    ],
)
def test_the_deadline_counts_from_the_notebooks_first_cell(
    places, monkeypatch, is_rerun, is_competition, own, expected_s
):
    if not is_rerun:
        monkeypatch.delenv(RERUN)
    values = prepared(places, [], PIPELINE + own, ago_s=100, is_competition=is_competition)
    assert float(values["deadline"].removesuffix("s")) == pytest.approx(expected_s, abs=15)


def test_what_is_not_mounted_is_one_line(places, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"^/kaggle/input/lora: not below "):
        prepared(places, [], PIPELINE.replace("head: letters", "head: letters, adapter: /kaggle/input/lora"))
    for name in ("input", "working", "scratch"):
        monkeypatch.setenv(f"STRATA_KAGGLE_{name.upper()}", str(getattr(places, name)))
    settings = Path(places.input / "datasets/me/run-wheels/strata-kernel.json")
    assert kernel.run_kernel(settings, time.time()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("strata: /kaggle/input/lora: ")
