"""What a process says of its memory: growth while a block is held, and zero where nothing is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from strata.scripts.bench.process_memory import peak_resident_bytes, status_bytes

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells")


CODE = """
import time
import numpy as np
from strata.scripts.bench.process_memory import AnonymousGrowth
with AnonymousGrowth() as memory:
    held = np.ones(64 << 20, np.uint8)
    time.sleep(1)
    del held
print(memory.peak_bytes)
"""


def test_growth_is_that_of_the_block():
    """In a process of its own: what other tests left is given back at some time, and hides the block."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=100, check=True
    )
    assert 60 << 20 <= int(done.stdout) < 1 << 30


def test_the_peak_is_at_least_what_is_held_now():
    assert peak_resident_bytes() >= status_bytes("VmRSS") > 1 << 20
    assert status_bytes("NoSuchField") == 0
