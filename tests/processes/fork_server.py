"""Processes that have imported torch, transformers and this package before they begin: a fork of one parent.

For tests that want a process of their own (signals, limits, kill -9) and not its start, which costs seconds.
As in `python -c CODE ARGUMENT...`: a pid, descriptors, working folder and environment of its own, one
thread, no handler of a signal but Python's own, `sys.argv`, `sys.path`, an empty `__main__`, and an end by
`SystemExit`, `atexit` and joined threads. Nothing of pytest is in it: the parent is a program, not a test.

Not as there: modules are loaded, so nothing can be told of imports or of what is read as they run
(`READ_BY_IMPORTS` is refused); memory is shared with the parent, so its size says little; the seeds of
hashes and of NumPy's old generator are the parent's; NumPy's products take one thread; stdin is empty.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

PROGRAM = Path(__file__).with_name("forking.py")
LOADED = (
    "transformers.models.llama.modeling_llama",
    "strata.engine.pack.pack",
    "strata.engine.run.score",
    "strata.retrieval.index.build",
    "strata.scripts.cli",
    "strata.training.loop.trainer",
)
READ_BY_IMPORTS = (
    *("CUDA", "GOMP_", "HF_", "KMP_", "LD_", "MALLOC_", "MKL_", "NUMBA_", "OMP_", "OPENBLAS_"),
    *("PYTHON", "PYTORCH_", "TORCH", "TRANSFORMERS_", "TRITON_"),
)
"""How variables begin that libraries read as they are loaded: a child has those of the parent."""


class ForkedProcess:
    """A child of the fork server, as a `subprocess.Popen` with text for stdout and stderr.

    Attributes:
        pid: of the process.
        returncode: its exit status, minus a signal's number; None until `wait` or `communicate` found it.
    """

    def __init__(self, told: int, stdout: int, stderr: int) -> None:
        self._told = os.fdopen(told, encoding="ascii")
        self.pid = int(self._told.readline())
        self.returncode: int | None = None
        self._readers = ThreadPoolExecutor(2)
        self._printed: list[Future[str]] = [
            self._readers.submit(_read_all, descriptor) for descriptor in (stdout, stderr)
        ]

    def wait(self, timeout: float) -> int:
        """Its exit status.

        Raises:
            TimeoutError: it still runs after so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it prints until it ends; it is killed where that takes longer."""
        try:
            self.wait(timeout)
        except TimeoutError:
            self.kill()
            raise
        stdout, stderr = (printed.result(timeout) for printed in self._printed)
        self._readers.shutdown()
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it is known to have ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


def _read_all(descriptor: int) -> str:
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        return file.read()


class ForkServer:
    """The parent, begun with the first child that is wanted; a context manager that ends it."""

    def __init__(self, loaded: tuple[str, ...] = LOADED) -> None:
        self._loaded = loaded
        self._channel: socket.socket | None = None
        self._parent: subprocess.Popen | None = None
        self._environment: dict[str, str] = {}

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._channel is not None and self._parent is not None:
            self._channel.close()
            self._parent.wait(timeout=60)

    def start(
        self,
        code: str,
        *arguments: str,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> ForkedProcess:
        """Begins a process as `python -c CODE ARGUMENT...` does.

        Args:
            code: of its `__main__`.
            arguments: what follows "-c" in `sys.argv`.
            cwd: where it works; None: here.
            environment: beside the variables of this process.

        Raises:
            ValueError: a variable is asked for that imports read, with another value than the parent has.
        """
        channel = self._open()
        asked = dict(environment or {})
        changed = [
            name
            for name, value in asked.items()
            if name.startswith(READ_BY_IMPORTS) and value != self._environment.get(name)
        ]
        if changed:
            raise ValueError(f"{', '.join(changed)}: read by imports; expected a process that was not forked")
        request = {
            "code": code,
            "arguments": list(arguments),
            "cwd": str(cwd or Path.cwd()),
            "environment": os.environ | asked,
        }
        (told, tells), (stdout, writes), (stderr, complains) = (os.pipe() for _ in range(3))
        nothing = os.open(os.devnull, os.O_RDONLY)
        theirs = [nothing, writes, complains, tells]
        message = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(channel, [message], theirs)
        channel.sendall(message[sent:])
        for descriptor in theirs:
            os.close(descriptor)
        return ForkedProcess(told, stdout, stderr)

    def run(
        self,
        code: str,
        *arguments: str,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """A process from its beginning to its end, as `subprocess.run` with its output captured."""
        process = self.start(code, *arguments, cwd=cwd, environment=environment)
        stdout, stderr = process.communicate(timeout)
        assert process.returncode is not None
        return subprocess.CompletedProcess(["-c", *arguments], process.returncode, stdout, stderr)

    def _open(self) -> socket.socket:
        if self._channel is None:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._environment = dict(os.environ)
            command = [sys.executable, str(PROGRAM), str(theirs.fileno()), *self._loaded]
            self._parent = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
            )
            theirs.close()
        return self._channel
