"""The program `strata`: hears SIGINT and SIGTERM before the command line is even loaded."""

from __future__ import annotations

import gc
import os
import sys

from strata.engine.model_files.light_imports import import_lightly
from strata.scripts.stoppable import run_stoppable

QUICK = ("-h", "--help", "--version")
LIGHT = ("score", "plan")
"""Commands that want of transformers only what scoring uses."""

COLLECTIONS = (50_000, 20, 100)
"""Objects made between two searches for unreachable cycles, and generations between wider ones.

Imports make hundreds of thousands of objects, all to stay. By Python's own (700, 10, 10) they are searched
some 700 times before the first layer. What nobody holds goes without a search, unless it holds itself.
"""


def main() -> int:
    """Runs the command that the program's arguments name; returns its exit status (see `cli.main`)."""
    let_device_memory_grow()
    gc.set_threshold(*COLLECTIONS)
    arguments = sys.argv[1:]
    if arguments and not any(flag in arguments for flag in QUICK) and sys.stderr.isatty():
        # Loading libraries takes seconds, in which a terminal would show nothing.
        print(f"strata {arguments[0]}: loading libraries and files ...", file=sys.stderr, flush=True)
    if arguments[:1] and arguments[0] in LIGHT:
        import_lightly()
    return run_stoppable(_run, until_exit=True)


ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""What torch reads as it starts: the first from 2.9 on, the second before."""


def let_device_memory_grow() -> None:
    """Has CUDA's allocator grow its segments in place, which leaves no gaps that nothing fits.

    Settings of the user's own stay as they are.
    """
    if not any(name in os.environ for name in ALLOCATOR_SETTINGS):
        os.environ.update(dict.fromkeys(ALLOCATOR_SETTINGS, "expandable_segments:True"))


def _run() -> int:
    from strata.scripts.cli import run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
