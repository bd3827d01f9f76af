"""Contexts that members are given: searched in the background, one source after the other, and kept on disk.

Flow: sources in order of first use -> a thread that searches while models compute -> `take` waits for one ->
a file a source, which a resumed run reads instead of searching. Knows no index: a finder is handed in.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from strata.engine.files import write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json
from strata.engine.types import Question

Finder = Callable[[Sequence[Question], threading.Event], list[str]]
"""Finds a context a question; gives up with an exception soon after the event is set."""


class _Kept(Schema):
    """The file of a source."""

    fingerprint: str
    contexts: list[str]


@dataclass(kw_only=True, eq=False)
class ContextShelf:
    """The contexts of some questions by source; a context manager, which ends the search with the block.

    Attributes:
        questions: whose contexts.
        finders: how each source is searched.
        settings: what decides the contexts of a source, as plain values.
        folder: where they are kept.
        resumes: contexts that an earlier run left are read.
    """

    questions: Sequence[Question]
    finders: Mapping[str, Finder]
    settings: Mapping[str, Any]
    folder: Path
    resumes: bool
    _stopped: threading.Event = field(default_factory=threading.Event)
    _found: dict[str, Future[list[str]]] = field(default_factory=dict)

    def __enter__(self) -> ContextShelf:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="contexts")
        for name, find in self.finders.items():
            self._found[name] = self._thread.submit(self._find, name, find)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def take(self, names: Sequence[str]) -> list[Question]:
        """The questions with the contexts that sources find, when these are there; other names are left out.

        Raises:
            InputError: a source cannot be searched.
        """
        found = {name: self._found[name].result() for name in names if name in self._found}
        return [
            replace(question, contexts=tuple((name, texts[place]) for name, texts in found.items()))
            for place, question in enumerate(self.questions)
        ]

    def found(self) -> dict[str, list[str]]:
        """The contexts of the sources that have been searched, by source; of others nothing."""
        searched = {name: one for name, one in self._found.items() if one.done() and not one.cancelled()}
        return {name: one.result() for name, one in searched.items() if one.exception() is None}

    def _find(self, name: str, find: Finder) -> list[str]:
        path, fingerprint = self.folder / f"{name}.json", self._fingerprint(name)
        if self.resumes and path.is_file():
            kept = check_schema(_Kept, read_json(path), str(path))
            if kept.fingerprint == fingerprint and len(kept.contexts) == len(self.questions):
                return kept.contexts
        contexts = find(self.questions, self._stopped)
        write_text_atomically(path, json.dumps({"fingerprint": fingerprint, "contexts": contexts}) + "\n")
        return contexts

    def _fingerprint(self, name: str) -> str:
        digest = hashlib.sha256(json.dumps(self.settings[name], sort_keys=True, default=str).encode())
        for question in self.questions:
            digest.update(json.dumps([question.id, question.prompt, *question.options]).encode())
        return digest.hexdigest()
