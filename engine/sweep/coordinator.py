"""Lets the threads of a run wait for each other, stops all when one fails. Knows nothing of their work."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence


class AbortedError(Exception):
    """Raised in a thread that waits, because another one failed."""


class Coordinator:
    """One condition that every wait of a run goes through, so that nothing waits for a thread that failed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._error: BaseException | None = None
        self._ended: dict[threading.Thread, threading.Event] = {}

    def update(self, change: Callable[[], None]) -> None:
        """Makes a change of shared state visible and wakes those who wait for it."""
        with self._condition:
            change()
            self._condition.notify_all()

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Waits until `ready()`.

        Raises:
            AbortedError: a thread of the run failed.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._error is not None or ready())
            self._check()

    def check(self) -> None:
        """Raises AbortedError when a thread of the run failed."""
        with self._condition:
            self._check()

    def fail(self, error: BaseException) -> None:
        """Records the first error of the run and wakes every thread."""
        with self._condition:
            self._error = self._error or error
            self._condition.notify_all()

    def stop(self) -> None:
        """Ends every wait and every thread of the run; returns when they are gone.

        Raises:
            KeyboardInterrupt: it came meanwhile; the threads are gone all the same.
        """
        self.fail(AbortedError())
        self._join(list(self._ended))
        atexit.unregister(self.stop)

    def guard(self, work: Callable[[], None]) -> Callable[[], None]:
        """The same work, whose exception stops the run."""

        def guarded() -> None:
            try:
                work()
            except AbortedError:
                pass
            except BaseException as error:  # every failure of a thread must reach the run
                self.fail(error)

        return guarded

    def start(self, task: Callable[[], None], name: str) -> threading.Thread:
        """Runs a task in the background; its exception stops the run."""
        if not self._ended:
            # Should an interrupt ever keep `stop` from being called: a thread that still computes while
            # Python shuts down takes the process with it.
            atexit.register(self.stop)
        ended = threading.Event()

        def work() -> None:
            try:
                self.guard(task)()
            finally:
                ended.set()

        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._ended[thread] = ended
        return thread

    def run(self, tasks: Sequence[Callable[[], None]], name: str) -> None:
        """Runs the tasks, a thread each, and waits for all.

        Raises:
            BaseException: the first error of any thread of the run, or KeyboardInterrupt, after all have
                stopped.
        """
        threads = [self.start(task, f"{name}-{index}") for index, task in enumerate(tasks)]
        self._join(threads)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raises the run's first error, if there is one."""
        if self._error is not None:
            raise self._error

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        """Waits until threads are gone; an interrupt stops them, and is raised when they are."""
        # Not Thread.join alone: interrupted, it takes a running thread for one that has ended (Python 3.11).
        interrupt: KeyboardInterrupt | None = None
        for thread in threads:
            is_waiting = True
            while is_waiting:
                try:
                    is_waiting = not self._ended[thread].wait(0.2)
                except KeyboardInterrupt as error:
                    interrupt = interrupt or error
                    self.fail(error)
            thread.join()
        if interrupt is not None:
            raise interrupt

    def _check(self) -> None:
        if self._error is not None:
            raise AbortedError
