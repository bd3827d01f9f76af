"""Executes a notebook where there is no network: `python run_notebook.py NOTEBOOK OUT` in a new namespace.

The kernel is spoken to over sockets in a folder, for the loopback device of a new namespace is down.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ANYWHERE = ("192.0.2.1", 80)
"""TEST-NET-1 (RFC 5737): nobody's address."""


def has_network() -> bool:
    """Whether there is a way to anywhere, be it that nobody answers there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ANYWHERE)
        except OSError:
            return False
    return True


def main() -> None:
    """Executes every cell, in order; a cell that raises ends it, as on Kaggle."""
    source, out = map(Path, sys.argv[1:])
    if has_network():
        sys.exit("there is a network; expected a namespace without one")
    notebook = nbformat.read(source, as_version=4)
    manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(out.with_suffix(".socket")))
    NotebookClient(notebook, km=manager, timeout=None, startup_timeout=300).execute()
    nbformat.write(notebook, out)


if __name__ == "__main__":
    main()
