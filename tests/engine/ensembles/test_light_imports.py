"""Rooms that commands may import for `--help`: what they need to fit, they load when they fit."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
LOAD = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({"scipy", "sklearn", "torch", "transformers"} & set(sys.modules)))
"""


def test_no_module_loads_scipy_or_torch():
    files = [path for room in ("calibration", "ensembles") for path in (ROOT / "engine" / room).glob("*.py")]
    names = [f"strata.engine.{path.parent.name}.{path.stem}" for path in files]
    assert len(names) > 10
    done = subprocess.run([sys.executable, "-c", LOAD, *names], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
