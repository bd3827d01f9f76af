"""What a run begins with: its questions or texts, and what scores them. Reads no weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from strata.engine.config import ScoreConfig
from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.questions.question_file import read_questions
from strata.engine.questions.text_file import read_texts
from strata.engine.scorer import Scorer
from strata.engine.types import Question


@contextmanager
def open_run(
    config: ScoreConfig, session: Session, profile: str | None = None
) -> Iterator[tuple[list[Question], Scorer]]:
    """Reads and checks all input but weights; the scorer is closed with the block.

    Args:
        config: the run's settings, checked.
        session: the caller's.
        profile: plan for the machine of a profile instead of this one.

    Raises:
        InputError: whatever is wrong with the question file or a member's files, in one line.
    """
    classifies = config.task == "classify"
    with session.timer.phase("read input"):
        # Texts come second: what their labels are called, the model says.
        questions = [] if classifies else _read_questions(config, session)
        scorer = Scorer.open(config.members(), _machine_of(config), session=session, profile=profile)
    with scorer:
        if classifies:
            with session.timer.phase("read input"):
                questions = _read_texts(config, scorer, session)
        yield questions, scorer


def _machine_of(config: ScoreConfig) -> MachineSettings:
    """The run's; where a cluster computes, this machine only renders prompts, and needs no card for it."""
    if config.cluster.ray is None:
        return config.machine
    return replace(config.machine, devices="cpu", cache_dir=None)


def _read_questions(config: ScoreConfig, session: Session) -> list[Question]:
    return read_questions(
        config.questions,
        context_column=config.context_column,
        id_column=config.id_column,
        limit=config.limit,
        warnings=session.warnings,
    )


def _read_texts(config: ScoreConfig, scorer: Scorer, session: Session) -> list[Question]:
    return read_texts(
        config.questions,
        scorer.labels,
        context_column=config.context_column,
        id_column=config.id_column,
        limit=config.limit,
        warnings=session.warnings,
    )
