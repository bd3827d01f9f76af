"""A strata member as reranker: the passages found for a query are the options of a question.

Each passage is scored alone (head yes-no, or a classifier head the checkpoint has) after the query that
they share, in one sweep for all queries. Source of asking a model for yes or no about relevance: Nogueira et
al., "Document ranking with a pretrained sequence-to-sequence model", Findings of EMNLP 2020.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.prompts.templates import Template
from strata.engine.results.peak_memory import PeakMemory
from strata.engine.run.artefacts import report_oddities
from strata.engine.scorer import Scorer
from strata.engine.types import LETTERS, Question

MAX_OPTIONS = len(LETTERS)

RELEVANCE_TEMPLATE = Template(
    name="relevance",
    text="""\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Answer yes if the passage helps to answer the question, and no if it does not.

### Input:
Question: {{ prompt }}
Passage: {{ option }}

### Response:
""",
    labels=("yes", "no"),
)


class MemberScorer:
    """Scores passages with strata members; a text scorer for `rerank_hits`, and a context manager.

    The members are opened at the first call, when the models of the search's earlier stages are in memory:
    the budget is what these leave. Later calls find them open.

    Args:
        members: what is asked, such as `relevance_members` gives; their templates get the query as `prompt`
            and the passage as `option`.
        machine: devices and budgets.
        progress: show the sweep's progress bar.

    Raises:
        InputError: when called, if a checkpoint, adapter or template cannot be used.
    """

    def __init__(
        self, members: Sequence[Member], machine: MachineSettings, *, progress: bool = False
    ) -> None:
        self._members, self._machine = members, machine
        self._session = Session(folder=Path(tempfile.gettempdir()), shows_progress=progress)
        self._opened = ExitStack()

    def __enter__(self) -> MemberScorer:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @property
    def warnings(self) -> list[str]:
        """What a user should know of the calls so far."""
        return self._session.warnings.messages

    def __call__(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """[Q] arrays of float64: log P(yes) - log P(no), or the classifier head's score, of each text."""
        dealt = [
            deal_questions(number, query, passages)
            for number, (query, passages) in enumerate(zip(queries, texts, strict=True))
        ]
        by_id = self._score([question for questions in dealt for question in questions])
        return [np.concatenate([by_id[own.id] for own in asked] or [np.empty(0)]) for asked in dealt]

    @cached_property
    def _scorer(self) -> Scorer:
        opened = Scorer.open(self._members, self._machine, session=self._session)
        return self._opened.enter_context(opened)

    def _score(self, questions: Sequence[Question]) -> dict[str, np.ndarray]:
        """[O] scores by question id."""
        if not questions:
            return {}
        with PeakMemory() as memory:
            job = self._scorer.plan(questions)
            by_id = {row.question.id: row.scores for rows in job.groups(Deadline()) for row in rows}
        report_oddities(job, memory.peak_bytes - memory.baseline_bytes, self._session.warnings)
        return by_id


def relevance_members(
    model: Path, adapters: Sequence[Path] = (), template: str | Template | None = None
) -> list[Member]:
    """Members that say whether a passage is of help.

    Args:
        model: Hugging Face checkpoint folder of a decoder.
        adapters: PEFT adapters, a member each; none for the model alone.
        template: built-in template or file; None takes RELEVANCE_TEMPLATE.
    """
    return [
        Member(model=model, adapter=adapter, template=template or RELEVANCE_TEMPLATE)
        for adapter in adapters or (None,)
    ]


def deal_questions(number: int, query: str, texts: Sequence[str]) -> list[Question]:
    """A query's texts as the options of as few questions as hold them; `number` tells queries apart."""
    return [
        Question(id=f"{number}-{hand[0]}", prompt=query, options=tuple(texts[place] for place in hand))
        for hand in deal_options(len(texts))
    ]


def deal_options(num_texts: int) -> list[range]:
    """Places of a query's texts, dealt to as few questions as hold them, of even sizes."""
    num_questions = -(-num_texts // MAX_OPTIONS)
    ends = [num_texts * number // num_questions for number in range(num_questions + 1)] if num_texts else [0]
    return [range(start, end) for start, end in pairwise(ends)]
