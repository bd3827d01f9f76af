"""Ray Data: an engine in every actor of `Dataset.map_batches`. Needs the extra `ray`; imports no Ray itself.

    import ray
    from strata.scripts.bridges.ray_data import StrataBatchScorer

    rows = ray.data.read_parquet("questions.parquet")
    scored = rows.map_batches(
        StrataBatchScorer,
        fn_constructor_kwargs={"members": [Member(model=Path("DIR"), head="letters")]},
        batch_size=2000,
        compute=ray.data.ActorPoolStrategy(size=4),
        num_cpus=8,
    )
    scored.write_parquet("scored")

Every batch is a sweep over the weights, so batches should hold thousands of rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.machine.shared_memory import divide_memory
from strata.engine.members.member import Member
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.questions.question_file import read_table
from strata.engine.questions.records import Record, RecordTable
from strata.engine.results.tables import best_names
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, QuestionScores

BATCH = Path("batch")
"""What messages call the rows that an actor is given."""


class StrataBatchScorer:
    """Scores batches of question rows; a callable class, made once an actor.

    Args:
        members: what scores, at least one; paths as the actor's node sees them.
        machine: devices, dtype and budgets of a node; this node's best by default.
        overrides: what of plans is fixed.
        actors_per_node: how many such actors work on a node side by side: each takes an equal share of the
            node's memory.
        context_column: column that holds the context; "none" leaves contexts out.

    Raises:
        InputError: whatever is wrong with a member's files or settings, in one line.
    """

    def __init__(
        self,
        members: Sequence[Member],
        machine: MachineSettings | None = None,
        *,
        overrides: PlanOverrides | None = None,
        actors_per_node: int = 1,
        context_column: str = "context",
    ) -> None:
        if actors_per_node < 1:
            raise InputError(f"actors_per_node: {actors_per_node}; expected 1 or more")
        settings = divide_memory(machine or MachineSettings(), actors_per_node)
        session = Session(folder=Path(tempfile.gettempdir()), overrides=overrides or PlanOverrides())
        self._scorer = Scorer.open(members, settings, session=session)
        self._context_column = context_column

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores the rows of a batch.

        Args:
            batch: columns [Q] as in a question file: id, prompt, A, B, ... or id, question, options, and
                perhaps answer and context. None is an absent option, "" an empty one; ids differ.

        Returns:
            The batch's columns and, for every row, `prediction` (the three best letters), `scores` and
            `probabilities` (float64 lists, an entry an option), `order` (int32 list, best first), `margin`.

        Raises:
            InputError: a row that cannot be read; the message names row and column.
        """
        warnings = self._scorer.session.warnings
        table = table_of_batch(batch)
        questions = read_table(BATCH, table, context_column=self._context_column, warnings=warnings)
        return {**batch, **columns_of_scores(self._scorer.score(questions))}


def table_of_batch(batch: Mapping[str, np.ndarray]) -> RecordTable:
    """The rows of a batch of columns [Q], as if they were read from a file."""
    cells = [[_plain(value) for value in column] for column in batch.values()]
    records = [
        Record(row=number, where=f"{BATCH}, row {number}", values=dict(zip(batch, values, strict=True)))
        for number, values in enumerate(zip(*cells, strict=True), start=1)
    ]
    return RecordTable(columns=tuple(batch), records=records)


def columns_of_scores(rows: Sequence[QuestionScores]) -> dict[str, np.ndarray]:
    """Columns [Q]; lists as long as a row has options are cells of an object array."""
    return {
        "prediction": np.array([best_names(row) for row in rows], dtype=object),
        "scores": _ragged([row.scores for row in rows]),
        "probabilities": _ragged([row.probabilities for row in rows]),
        "order": _ragged([np.array(row.order, dtype=np.int32) for row in rows]),
        "margin": np.array([row.margin for row in rows]),
    }


def _plain(value: object) -> object:
    """A cell as Python has it."""
    plain = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return None if isinstance(plain, float) and np.isnan(plain) else plain


def _ragged(lists: Sequence[np.ndarray]) -> np.ndarray:
    column = np.empty(len(lists), dtype=object)
    for index, values in enumerate(lists):
        column[index] = values
    return column
