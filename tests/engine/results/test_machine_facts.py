"""What is recorded of machine, versions and command."""

import json
import re
import sys
from pathlib import Path

from strata.engine.machine.profile import describe_machine
from strata.engine.results import machine_facts
from strata.engine.results.machine_facts import collect_machine_facts, collect_run_info


def test_run_info_says_where_and_with_what(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["strata", "score", "--out", "a folder"])
    monkeypatch.setenv("STRATA_TEST_TOKEN", "do-not-record-me")
    info = collect_run_info({"out": Path("a folder")})
    json.dumps(info, allow_nan=False)
    assert {"strata", "commit", "python", "torch", "transformers", "machine", "command", "config"} <= set(
        info
    )
    assert info["command"] == "strata score --out 'a folder'"
    assert info["torch"].split(".")[0] == "2"
    assert info["machine"]["ram_gib"] > 0.1
    assert info["machine"]["num_usable_cores"] >= 1
    assert "do-not-record-me" not in json.dumps(info)
    root = Path(machine_facts.__file__).resolve().parents[2]
    if (root / ".git").exists():
        assert info["commit"] is None or re.fullmatch(r"[0-9a-f]{40,64}", info["commit"])


def test_run_info_outside_a_checkout_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(
        machine_facts, "__file__", str(tmp_path / "strata" / "engine" / "results" / "machine_facts.py")
    )
    assert collect_run_info({})["commit"] is None


def test_gpus_are_read_from_nvidia_smi(monkeypatch):
    monkeypatch.setattr(machine_facts.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        machine_facts, "read_command", lambda *_: "Tesla T4, 15360, 550.1\nNew, One, [N/A], 1"
    )
    assert machine_facts.list_gpus() == [
        {"name": "Tesla T4", "memory_gib": 15.0, "driver": "550.1"},
        {"name": "New, One", "memory_gib": None, "driver": "1"},
    ]
    monkeypatch.setattr(machine_facts, "read_command", lambda *_: None)
    assert machine_facts.list_gpus() is None
    monkeypatch.setattr(machine_facts.shutil, "which", lambda name: None)
    assert machine_facts.list_gpus() == []


def test_the_cpu_is_called_what_linux_lists_first(monkeypatch):
    listing = "processor\t: 0\nmodel name\t: Fast: CPU @ 3 GHz\nprocessor\t: 1\nmodel name\t: Other\n"
    monkeypatch.setattr(machine_facts, "read_cpuinfo", lambda: listing)
    assert machine_facts.cpu_name() == collect_machine_facts()["cpu"] == "Fast: CPU @ 3 GHz"
    assert describe_machine().cpu == "Fast: CPU @ 3 GHz"


def test_a_cpu_that_nothing_names(monkeypatch):
    monkeypatch.setattr(machine_facts, "read_cpuinfo", lambda: "processor : 0\n")
    monkeypatch.setattr(machine_facts.platform, "processor", lambda: "")
    monkeypatch.setattr(machine_facts.platform, "machine", lambda: "riscv")
    assert machine_facts.cpu_name() is None
    assert describe_machine().cpu == "riscv"


def test_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(machine_facts.os, "sched_getaffinity", lambda process: {1, 4, 7}, raising=False)
    assert machine_facts.num_usable_cores() == describe_machine().num_cores == 3
    monkeypatch.delattr(machine_facts.os, "sched_getaffinity")
    monkeypatch.setattr(machine_facts.os, "cpu_count", lambda: 64)
    assert machine_facts.num_usable_cores() == 64
