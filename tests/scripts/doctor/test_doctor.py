"""`strata doctor`: facts as they are, troubles that keep strata from working, and tables of both."""

from __future__ import annotations

import errno
import json

import pytest

from strata.engine.machine.card_products import keep_card_products
from strata.engine.machine.product_rates import ProductRates
from strata.scripts.cli import main
from strata.scripts.doctor import disks
from strata.scripts.doctor.advice import int8_advice
from strata.scripts.doctor.devices import DeviceFacts, capability_trouble
from strata.scripts.doctor.disks import measure_folder
from strata.scripts.doctor.doctor import find_troubles
from strata.scripts.doctor.extras import ExtraFacts, examine_extras

# The image's torch of 2026, as its logs print it.
IMAGE_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


@pytest.mark.parametrize(
    ("capability", "built_for", "can"),
    [
        ((7, 5), IMAGE_ARCHITECTURES, True),
        ((6, 0), IMAGE_ARCHITECTURES, False),
        # A lower minor version of the same major one.
        ((8, 9), IMAGE_ARCHITECTURES, True),
        ((8, 0), ("sm_86",), False),
        # PTX is compiled for whatever comes later, and for nothing that came before.
        ((9, 0), ("sm_75", "compute_80"), True),
        ((7, 0), ("compute_80",), False),
        ((9, 0), ("sm_90a",), True),
        ((7, 5), (), True),
    ],
)
def test_which_cards_a_build_of_torch_can_use(capability, built_for, can):
    trouble = capability_trouble(capability, built_for)
    assert (trouble is None) == can
    if not can:
        assert ".".join(map(str, capability)) in trouble


def test_what_an_extra_lacks():
    requirements = [
        "torch<2.14,>=2.8",
        'tantivy<0.28,>=0.26; extra == "retrieval"',
        'numba>=0.60; extra == "retrieval"',
        'gguf>=0.17; extra == "gguf"',
        'pytest>=8; extra == "dev"',
        'colorama; sys_platform == "win32"',
    ]
    versions = {"torch": "2.10.0+cu128", "numba": "0.59.1", "gguf": "0.19.0"}
    found = {extra.name: extra.missing for extra in examine_extras(requirements, versions.get)}
    assert list(found) == ["", "gguf", "retrieval"]
    assert found[""] == ()
    assert found["gguf"] == ()
    assert found["retrieval"] == ("numba>=0.60 (there is 0.59.1)", "tantivy<0.28,>=0.26")


def test_troubles():
    device = DeviceFacts(
        name="cuda:0",
        model="Tesla P100",
        capability="6.0",
        total_bytes=1,
        free_bytes=None,
        trouble="this torch has no code for it",
    )
    needed = ExtraFacts(name="", use="everything", missing=("torch>=2.8",))
    told = find_troubles([device], {"peft": "0.19.1", "torchao": "0.10.0"}, [needed])
    assert [line.split(":")[0] for line in told] == [
        "cuda",
        "needed",
        "torchao 0.10.0 makes peft refuse LoRA; expected pip uninstall -y torchao",
    ]
    assert (
        find_troubles([], {"peft": "0.19.1", "torchao": "0.16.0"}, [ExtraFacts(name="", use="", missing=())])
        == []
    )


@pytest.mark.parametrize(
    ("cards", "int8", "begins"),
    [
        (["Tesla T4", "Tesla T4"], 1, "no: int8 was never measured on Tesla T4 with torch"),
        (["fast card"], 1, "worth a try: measured 2.00 times floats"),
        (["fast card", "Tesla T4"], 1, "no: int8 was never measured on Tesla T4"),
        (["fast card", "slow card"], 1, "no: measured 0.75 times floats"),
        ([], 3e11, "worth a try: measured float32 100, bfloat16 200, int8 300 GFLOP/s"),
        ([], 9e9, "no: measured float32 100, bfloat16 200, int8 9 GFLOP/s"),
    ],
)
def test_whether_int8_is_worth_a_try(cards, int8, begins, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_card_products("fast card", "float16 8192x8192", {"cuda": 4e13, "dense": 2e13})
    keep_card_products("slow card", "float16 8192x8192", {"int_mm": 1.5e13, "dense": 2e13})
    products = ProductRates(flop_per_s={"float32": 1e11, "bfloat16": 2e11, "int8": int8})
    assert int8_advice(cards, products).startswith(begins)


def test_a_disk_is_measured_and_left_as_it_was(tmp_path):
    facts = measure_folder(tmp_path)
    assert facts.free_bytes > 0
    assert facts.read_bytes_per_s > 0
    assert facts.write_bytes_per_s > 0
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_may_be_written_a_file_is_read(tmp_path, monkeypatch):
    def refuse(**settings: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(disks.tempfile, "NamedTemporaryFile", refuse)
    assert measure_folder(tmp_path).read_bytes_per_s is None
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "weights").write_bytes(bytes(100_000))
    facts = measure_folder(tmp_path)
    assert facts.write_bytes_per_s is None
    assert facts.read_bytes_per_s > 0
    assert measure_folder(tmp_path / "absent").free_bytes is None


def test_the_tables(tmp_path, capsys):
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for words in (
        "this machine",
        "what strata would do",
        "--cache-dir",
        "retrieval",
        "RAM",
        "disk of",
    ):
        assert words in told


def test_the_same_as_json(tmp_path, capsys):
    assert main(["doctor", "--json", "--folder", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["disks"][0]["folder"] == str(tmp_path)
    assert told["versions"]["torch"]
    assert told["advice"]["host_budget_bytes"] > 0
    assert {"adapters", "gguf", "retrieval"} <= {extra["name"] for extra in told["extras"]}
