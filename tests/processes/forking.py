"""A program that imports what commands want and then forks a child a request: see fork_server.py.

Usage: forking.py DESCRIPTOR MODULE...; requests come by the socket of that descriptor. Ends when it closes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import socket
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 20
BEGUN_ANEW = ("jemalloc_bg_thd",)
"""pyarrow's allocator starts its thread again in a child (jemalloc's background_thread_postfork_child)."""


def receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request, and descriptors: stdin, stdout, stderr, and where the pid and then the exit code go.

    The request is empty when the channel is closed.
    """
    message, descriptors, _, _ = socket.recv_fds(channel, MOST_BYTES, 4)
    while message and not message.endswith(b"\n"):
        message += channel.recv(MOST_BYTES)
    return (json.loads(message) if message else {}), descriptors


def become(request: dict[str, Any], descriptors: list[int]) -> types.ModuleType:
    """Turns this process into the one that was asked for; returns its `__main__`, still empty."""
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["-c", *request["arguments"]]
    sys.path.insert(0, "")
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    return main


@dataclass(kw_only=True, eq=False)
class Server:
    """The parent of the children that run, by the pipe that closes when they end."""

    channel: socket.socket
    children: dict[int, tuple[int, int]] = field(default_factory=dict)

    def serve(self) -> tuple[dict[str, Any], list[int]] | None:
        """Forks children until the channel closes; returns their request in a child, None at the end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.channel, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is not self.channel:
                        selector.unregister(key.fileobj)
                        self._end(key.fd)
                        continue
                    request, descriptors = receive(self.channel)
                    if not request:
                        return None
                    ends = self._fork(descriptors)
                    if ends is None:
                        return request, descriptors[:3]
                    selector.register(ends, selectors.EVENT_READ)

    def _fork(self, descriptors: list[int]) -> int | None:
        """Forks; in the parent, the pipe that closes when the child ends."""
        ends, lives = os.pipe()
        pid = os.fork()
        if not pid:
            for descriptor in (
                ends,
                descriptors[3],
                *(one for pair in self.children.items() for one in (pair[0], pair[1][1])),
            ):
                os.close(descriptor)
            self.channel.close()
            return None
        for descriptor in (lives, *descriptors[:3]):
            os.close(descriptor)
        self.children[ends] = pid, descriptors[3]
        os.write(descriptors[3], f"{pid}\n".encode())
        return ends

    def _end(self, ends: int) -> None:
        pid, told = self.children.pop(ends)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(ends)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it
            os.write(told, f"{code}\n".encode())
        os.close(told)


def other_threads() -> list[str]:
    """Names of threads beside this one, which alone is in a fork, where Linux tells."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    return [name for name in names[1:] if name not in BEGUN_ANEW]


del sys.path[0]  # this file's folder
for name in sys.argv[2:]:
    importlib.import_module(name)
if other_threads():
    sys.exit(f"threads were begun by imports, which a child would lack: {other_threads()}")
asked = Server(channel=socket.socket(fileno=int(sys.argv[1]))).serve()
if asked is not None:
    # At the end of the file, so that it ends as any process does: SystemExit, atexit, threads joined.
    main_module = become(*asked)
    exec(compile(asked[0]["code"], "<string>", "exec"), main_module.__dict__)
