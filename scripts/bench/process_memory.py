"""What Linux says of this process's memory. Only the standard library: peers' interpreters use it too."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Thread

SAMPLE_S = 0.002


def status_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes, such as RssAnon or VmHWM; 0 where there is none."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields[field].split()[0]) * 1024 if field in fields else 0


def peak_resident_bytes() -> int:
    """The most memory this process ever held, libraries included.

    Not getrusage's ru_maxrss: after fork and exec that one starts from what the parent held at the fork.
    """
    return status_bytes("VmHWM")


def anonymous_bytes() -> int:
    """Resident bytes of this process that belong to no file."""
    return status_bytes("RssAnon")


class AnonymousGrowth:
    """Context manager: `peak_bytes`, the most anonymous memory the process gained, sampled from a thread.

    Files that are mapped do not count. Zero where the system does not tell (only Linux does).
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> AnonymousGrowth:
        self._start_bytes = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes() - self._start_bytes)
