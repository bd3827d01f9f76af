"""A strata member as reranker: the passages found for a query are the options of a question.

Each passage is scored alone (head yes-no, or a classifier head the checkpoint has) after the query that
they share, in one sweep for all queries. Source of asking a model for yes or no about relevance: Nogueira et
al., "Document ranking with a pretrained sequence-to-sequence model", Findings of EMNLP 2020.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml

from strata.engine.config import ScoreConfig
from strata.engine.run.score import score_questions
from strata.engine.types import LETTERS

MAX_OPTIONS = len(LETTERS)

RELEVANCE_TEMPLATE = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Answer yes if the passage helps to answer the question, and no if it does not.

### Input:
Question: {{ prompt }}
Passage: {{ option }}

### Response:
"""


class MemberScorer:
    """Scores passages with a decoder checkpoint; a text scorer for `rerank_hits`.

    Args:
        model: Hugging Face checkpoint folder.
        adapter: PEFT adapters, applied side by side as in `strata score`.
        template: built-in template or file, given the query as `prompt` and the passage as `option`; None
            takes RELEVANCE_TEMPLATE.
        memory_gib: budget for weights and activations on a device; None lets the planner decide.
        devices: as in `strata score`.
        progress: show the sweep's progress bar.

    Raises:
        InputError: when called, if the checkpoint or template cannot be used.
    """

    def __init__(
        self,
        model: Path,
        *,
        adapter: tuple[Path, ...] = (),
        template: str | None = None,
        memory_gib: float | None = None,
        devices: str = "auto",
        progress: bool = False,
    ) -> None:
        self._model = model
        self._adapter = adapter
        self._template = template
        self._memory_gib = memory_gib
        self._devices = devices
        self._progress = progress
        self.warnings: list[str] = []

    def __call__(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """[Q] arrays of float64: log P(yes) - log P(no), or the classifier head's score, of each text."""
        hands = [deal_options(len(passages)) for passages in texts]
        with tempfile.TemporaryDirectory(prefix="strata-rerank-") as folder:
            self._write_job(Path(folder), queries, texts, hands)
            run = score_questions(self._config(Path(folder)))
        self.warnings = list(run.record["warnings"]["messages"])
        by_id = {row.question.id: row.scores for row in run.scores}
        return [
            np.concatenate(
                [by_id[_question_id(query, hand[0])][: len(hand)] for hand in dealt] or [np.empty(0)]
            )
            for query, dealt in enumerate(hands)
        ]

    def _write_job(
        self, folder: Path, queries: Sequence[str], texts: Sequence[Sequence[str]], hands: list[list[range]]
    ) -> None:
        with (folder / "passages.jsonl").open("w", encoding="utf-8") as file:
            for query, (prompt, passages) in enumerate(zip(queries, texts, strict=True)):
                for hand in hands[query]:
                    options = [passages[place] for place in hand]
                    # A question has two options at least; the second of these is scored and not looked at.
                    options += options * (len(options) == 1)
                    row = {"id": _question_id(query, hand[0]), "question": prompt, "options": options}
                    file.write(json.dumps(row) + "\n")
        (folder / "relevance.yaml").write_text(
            yaml.safe_dump({"text": RELEVANCE_TEMPLATE, "labels": ["yes", "no"]}), encoding="utf-8"
        )

    def _config(self, folder: Path) -> ScoreConfig:
        return ScoreConfig(
            model=self._model,
            questions=folder / "passages.jsonl",
            out=folder / "run",
            adapter=self._adapter,
            template=self._template or str(folder / "relevance.yaml"),
            memory_gib=self._memory_gib,
            devices=self._devices,
            progress=self._progress,
        )


def deal_options(num_texts: int) -> list[range]:
    """Places of a query's texts, dealt to as few questions as hold them, of even sizes."""
    num_questions = -(-num_texts // MAX_OPTIONS)
    ends = [num_texts * number // num_questions for number in range(num_questions + 1)] if num_texts else [0]
    return [range(start, end) for start, end in pairwise(ends)]


def _question_id(query: int, first: int) -> str:
    return f"{query}-{first}"
