"""What a process says of its memory: growth while a block is held, and zero where nothing is told."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from strata.scripts.bench.process_memory import AnonymousGrowth, peak_resident_bytes, status_bytes

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells")


def test_growth_is_that_of_the_block():
    with AnonymousGrowth() as memory:
        held = np.ones(64 << 20, np.uint8)
        time.sleep(1)
        del held
    assert 60 << 20 <= memory.peak_bytes < 1 << 30


def test_the_peak_is_at_least_what_is_held_now():
    assert peak_resident_bytes() >= status_bytes("VmRSS") > 1 << 20
    assert status_bytes("NoSuchField") == 0
