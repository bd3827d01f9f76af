"""What an interrupted run has already scored: appended after every group, picked up by `--resume`.

A file of JSON lines: first the fingerprint of everything that decides scores, then a line a question. A last
line that a crash cut off is dropped; any other damage is told, with its line. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from strata.engine.json_files import Schema, check_schema, cut_torn_line, read_json_lines, shown
from strata.engine.types import InputError, Prompt, Question, QuestionScores

FILE_NAME = "partial.jsonl"
PLACES = (FILE_NAME, f"members/*/{FILE_NAME}")
"""In the output folder of `strata score`, and of `strata run`."""


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
            InputError: the file belongs to another job, or a line is not what `add` writes (names the line).
        """
        if not self._path.is_file():
            return {}
        lines = read_json_lines(self._path)
        if not lines:
            return {}
        if check_schema(_Header, lines[0][1], lines[0][0]).fingerprint != self._fingerprint:
            raise InputError(
                f"--resume: {self._path} is from another job (other questions, model, weights or settings); "
                "expected the flags and files of the interrupted run"
            )
        by_id = {question.id: question for question in questions}
        restored = (_restore(check_schema(_Line, line, place), by_id, place) for place, line in lines[1:])
        return {row.question.id: row for row in restored}

    def start(self, *, resume: bool) -> None:
        """Begins a new file, unless the one there is to be gone on with."""
        if not resume:
            self.remove()
        if self._path.is_file():
            cut_torn_line(self._path)
        if not self._path.is_file() or not self._path.stat().st_size:
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


def resume_hint(out: Path) -> str:
    """What an interrupted command says of results kept in its output folder; empty where there are none."""
    counts = [path.read_bytes().count(b"\n") - 1 for place in PLACES for path in out.glob(place)]
    num_kept = sum(count for count in counts if count > 0)
    return f"{num_kept:,} result(s) are kept in {out}: --resume goes on after them" if num_kept else ""


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
            if branch.siblings:
                digest.update(str(branch.siblings).encode())
    return digest.hexdigest()


class _Header(Schema):
    """The first line."""

    fingerprint: str


class _Line(Schema):
    """A question's line; lists are as long as the question has options."""

    id: str
    scores: list[float]
    probabilities: list[float]
    members: dict[str, list[float]]


def _restore(line: _Line, by_id: Mapping[str, Question], place: str) -> QuestionScores:
    question = by_id.get(line.id)
    if question is None:
        raise InputError(f"{place}: id {shown(line.id)} is of no question; expected those of the run")
    num_options = len(question.options)
    for name, values in {"scores": line.scores, "probabilities": line.probabilities, **line.members}.items():
        if len(values) != num_options:
            raise InputError(
                f"{place}: {name}: {len(values)} numbers; expected {num_options}, one an option of "
                f"question {shown(line.id)}"
            )
    return QuestionScores(
        question=question,
        scores=np.array(line.scores),
        probabilities=np.array(line.probabilities),
        member_scores={name: np.array(values) for name, values in line.members.items()},
    )
