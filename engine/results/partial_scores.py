"""What an interrupted run has already scored: appended after every group, picked up by `--resume`.

A file of JSON lines: first the fingerprint of everything that decides scores, then a line a question. A line
cut off by a crash is ignored. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from strata.engine.types import InputError, Prompt, Question, QuestionScores

FILE_NAME = "partial.jsonl"


class PartialScores:
    """The partial results of a run in its output folder.

    Args:
        folder: the run's output folder.
        fingerprint: from `fingerprint_job`.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._path = folder / FILE_NAME
        self._fingerprint = fingerprint

    def read(self, questions: Sequence[Question]) -> dict[str, QuestionScores]:
        """Scores of an earlier run of the same job by question id; empty when there are none.

        Raises:
            InputError: the file belongs to another job.
        """
        if not self._path.is_file():
            return {}
        lines = list(_whole_lines(self._path))
        if not lines or lines[0].get("fingerprint") != self._fingerprint:
            raise InputError(
                f"--resume: {self._path} is from another job (other questions, model or settings); "
                "expected the flags of the interrupted run"
            )
        by_id = {question.id: question for question in questions}
        return {line["id"]: _restore(line, by_id[line["id"]]) for line in lines[1:]}

    def start(self, *, resume: bool) -> None:
        """Begins a new file, unless the one there is to be gone on with."""
        if not resume:
            self.remove()
        if not self._path.is_file():
            self._append([{"fingerprint": self._fingerprint}])

    def add(self, scores: Iterable[QuestionScores]) -> None:
        """Appends questions, safe on disk when it returns."""
        self._append(
            {
                "id": row.question.id,
                "scores": row.scores.tolist(),
                "probabilities": row.probabilities.tolist(),
                "members": {name: values.tolist() for name, values in row.member_scores.items()},
            }
            for row in scores
        )

    def remove(self) -> None:
        """Deletes the file: the run is whole."""
        self._path.unlink(missing_ok=True)

    def _append(self, lines: Iterable[dict]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def fingerprint_job(prompts: Sequence[Prompt], settings: Iterable[object]) -> str:
    """A digest of all token ids, targets, ids and labels of a job and of the settings that decide scores."""
    digest = hashlib.sha256(json.dumps([str(setting) for setting in settings]).encode())
    for prompt in prompts:
        digest.update(prompt.question.id.encode())
        if prompt.question.is_text:
            digest.update(json.dumps(prompt.question.options).encode())
        for branch in prompt.branches:
            digest.update(branch.token_ids.tobytes())
            digest.update(str([(target.position, target.token_id) for target in branch.targets]).encode())
    return digest.hexdigest()


def _whole_lines(path: Path) -> Iterable[dict]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _restore(line: dict, question: Question) -> QuestionScores:
    return QuestionScores(
        question=question,
        scores=np.array(line["scores"]),
        probabilities=np.array(line["probabilities"]),
        member_scores={name: np.array(values) for name, values in line["members"].items()},
    )
