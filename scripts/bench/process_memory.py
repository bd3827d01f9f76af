"""What Linux says of this process's memory. Only the standard library: peers' interpreters use it too."""

from __future__ import annotations

from pathlib import Path


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
