"""SIGINT and SIGTERM: the first one stops a command, later ones change nothing while it cleans up.

Flow: signal -> KeyboardInterrupt in the main thread -> threads end, temporary files go, run.json says
"interrupted" -> one line on stderr -> status 128 + the signal's number, as shells have it (130, 143).
A second Ctrl-C in the middle of that would undo it. SIGQUIT and SIGKILL still end a process at once.
Imports nothing heavy, so that a signal is heard from the first moments on.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

STOPPING = (signal.SIGINT, signal.SIGTERM)
AGAIN_AFTER_S = 0.05


def run_stoppable(command: Callable[[], int], *, until_exit: bool) -> int:
    """Runs a command that SIGINT and SIGTERM stop.

    Args:
        command: returns its exit status; whatever it raises after a signal is taken for the stop.
        until_exit: ignore both signals from then on, since the process ends: an exit that is interrupted
            leaves tracebacks.

    Returns:
        The command's exit status, or 128 + the number of the signal that stopped it.
    """
    with _StopSignals(until_exit=until_exit) as signals:
        try:
            return command()
        except KeyboardInterrupt as interrupt:
            return _say_interrupted(signals.received or signal.SIGINT, str(interrupt))
        except Exception:
            # Modules that are interrupted while they are being imported say ImportError or SystemError.
            if signals.received is None:
                raise
            return _say_interrupted(signals.received, "")


def _say_interrupted(number: int, hint: str) -> int:
    print(f"strata: interrupted{'; ' if hint else ''}{hint}", file=sys.stderr)
    return 128 + number


class _StopSignals:
    """Context manager in which the first signal raises KeyboardInterrupt; `received` is its number."""

    def __init__(self, *, until_exit: bool) -> None:
        self.received: int | None = None
        self._until_exit = until_exit
        self._former: dict[int, object] = {}
        self._former_hook = sys.unraisablehook
        self._sent_again: list[threading.Timer] = []

    def __enter__(self) -> _StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._former = {number: signal.getsignal(number) for number in STOPPING}
        if self._former[signal.SIGINT] == signal.SIG_IGN:
            del self._former[signal.SIGINT]  # a job that a script started in the background
        for number in self._former:
            signal.signal(number, self._stop)
        sys.unraisablehook = self._report
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for again in self._sent_again:
            again.cancel()
            again.join()
        sys.unraisablehook = self._former_hook
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_IGN if self._until_exit else handler)  # type: ignore[arg-type]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return
        if _is_importing(frame):
            self._send_again(number)
            return
        self.received = number
        raise KeyboardInterrupt

    def _report(self, ignored: sys.UnraisableHookArgs) -> None:
        """Raises an interrupt again that fell into a destructor, where Python can only report it."""
        if not isinstance(ignored.exc_value, KeyboardInterrupt) or self.received is None:
            self._former_hook(ignored)
            return
        number, self.received = self.received, None
        self._send_again(number)

    def _send_again(self, number: int) -> None:
        main_thread = threading.main_thread().ident
        again = threading.Timer(AGAIN_AFTER_S, signal.pthread_kill, [main_thread, number])
        again.daemon = True
        self._sent_again.append(again)
        again.start()


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: extensions that are interrupted then may end the process."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
