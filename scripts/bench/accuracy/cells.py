"""A cell of the accuracy table: a model, a set and a way of asking, as a run that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from strata.engine.config import ScoreConfig
from strata.engine.files import to_json
from strata.engine.json_files import read_json_object
from strata.engine.prompts.tokenizer import read_tokenizer
from strata.engine.run.score import score_questions
from strata.scripts.bench.accuracy.config import AccuracyBenchConfig, HeadName, SetName

WITH_CONTEXT = "_context"
ROTATED = "-rotate"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is asked of whom, and how."""

    model: Path
    question_set: SetName
    head: HeadName
    is_chat: bool

    @property
    def way(self) -> str:
        """The head's name as the table and the record's keys have it."""
        return f"{self.head}-chat" if self.is_chat else self.head

    @property
    def name(self) -> str:
        """What the record's keys end in."""
        return f"{self.model.stem}_{self.way}_{self.question_set}"

    def score_config(self, config: AccuracyBenchConfig) -> ScoreConfig:
        """The run that fills the cell."""
        file = self.question_set.removesuffix(WITH_CONTEXT)
        suffix = ".csv" if file.startswith("kaggle") else ".jsonl"
        return ScoreConfig.from_flags(
            model=self.model,
            questions=config.data / f"{file}{suffix}",
            out=config.folder / self.model.stem / f"{self.question_set}-{self.way}",
            head=self.head.removesuffix(ROTATED),
            debias="rotate" if self.head.endswith(ROTATED) else "none",
            chat=self.is_chat,
            context_column="context" if self.question_set.endswith(WITH_CONTEXT) else "none",
            max_tokens=config.max_tokens,
            dtype=config.dtype,
            limit=config.limit,
            resume=True,
        )


def list_cells(config: AccuracyBenchConfig, models: Sequence[Path]) -> Iterator[Cell]:
    """All cells, so that what is cheap comes first and models can be compared early."""
    has_chat = {model: bool(read_tokenizer(model).chat_template) for model in models}
    for head in config.heads or get_args(HeadName):
        for is_chat in (False, True):
            for question_set in config.sets or get_args(SetName):
                for model in models:
                    if has_chat[model] or not is_chat:
                        yield Cell(model=model, question_set=question_set, head=head, is_chat=is_chat)


def fill_cell(cell: Cell, config: AccuracyBenchConfig) -> dict[str, Any]:
    """The metrics of the cell's run: of one that is kept, gone on with, or begun.

    Returns:
        What `strata.engine.questions.metrics.evaluate` says.
    """
    asked = cell.score_config(config)
    record = _read_finished(asked) or score_questions(asked).record
    return dict(record["metrics"])


def _read_finished(asked: ScoreConfig) -> dict[str, Any] | None:
    path = asked.out / "run.json"
    if not path.is_file():
        return None
    record = read_json_object(path)
    is_same = record["run_info"]["config"] == to_json(asked.as_flags())
    return record if is_same and record["status"] == "done" else None
