"""Budgets of engines that work on one machine side by side."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from strata.engine.machine.devices import GIB
from strata.engine.machine.settings import MachineSettings
from strata.engine.machine.shared_memory import divide_memory


def test_engines_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given = MachineSettings(devices="cpu", memory_gib=12, host_memory_gib=30)
    assert divide_memory(given, 1) is given
    third = divide_memory(given, 3)
    assert (third.memory_gib, third.host_memory_gib) == (pytest.approx(4), pytest.approx(10))
    free = SimpleNamespace(available=100 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    half = divide_memory(MachineSettings(devices="cpu"), 2)
    assert (half.memory_gib, half.host_memory_gib) == (pytest.approx(40), pytest.approx(40))


def test_a_card_is_an_engines_own_while_host_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    given = MachineSettings(devices="cuda:0", memory_gib=14, host_memory_gib=30)
    half = divide_memory(given, 2)
    assert (half.memory_gib, half.host_memory_gib) == (14, pytest.approx(15))
