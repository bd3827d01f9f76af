"""Reads the next model's first bytes while the one before still computes, so that they are in the page cache.

A hint and no more: nothing depends on it, and it takes no memory that the system would not give back.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from strata.engine.types import InputError
from strata.engine.weights.stored_checkpoint import stored_files

BLOCK_BYTES = 8 << 20
MOST_BYTES = 2 << 30
"""About two layers of a 70B in 8 bits: what a sweep needs before its own reading is ahead."""


class ReadAhead:
    """A context manager that reads the beginning of a model's weights in a thread of its own.

    Args:
        model: a checkpoint's folder or file; None for nothing.
        most_bytes: where it stops.
    """

    def __init__(self, model: Path | None, most_bytes: int = MOST_BYTES) -> None:
        self._model, self._most_bytes = model, most_bytes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
        self.num_bytes = 0

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def begin(self) -> None:
        """Starts reading; a second call changes nothing."""
        if self._model is not None and self._thread.ident is None:
            self._thread.start()

    def _read(self) -> None:
        assert self._model is not None
        # Whoever needs a file that is missing or broken says so.
        with suppress(OSError, InputError):
            for path in sorted(stored_files(self._model)):
                with path.open("rb", buffering=0) as file:
                    while block := file.read(BLOCK_BYTES):
                        self.num_bytes += len(block)
                        if self._stopped.is_set() or self.num_bytes >= self._most_bytes:
                            return
