"""Lets the threads of a run wait for each other, stops all when one fails. Knows nothing of their work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


class AbortedError(Exception):
    """Raised in a thread that waits, because another one failed."""


class Coordinator:
    """One condition that every wait of a run goes through, so that nothing waits for a thread that failed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

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
        """Ends every wait and every thread of the run; returns when they are gone."""
        self.fail(AbortedError())
        for thread in self._threads:
            thread.join()

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
        thread = threading.Thread(target=self.guard(task), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def run(self, tasks: Sequence[Callable[[], None]], name: str) -> None:
        """Runs the tasks, a thread each, and waits for all.

        Raises:
            BaseException: the first error of any thread of the run, or KeyboardInterrupt, after all have
                stopped.
        """
        threads = [self.start(task, f"{name}-{index}") for index, task in enumerate(tasks)]
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        except KeyboardInterrupt as interrupt:
            self.fail(interrupt)
            for thread in threads:
                thread.join()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raises the run's first error, if there is one."""
        if self._error is not None:
            raise self._error

    def _check(self) -> None:
        if self._error is not None:
            raise AbortedError
