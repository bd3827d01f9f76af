"""What `--dtype int8` does to scores: a sample of the job's own questions, scored again without it.

Flow: sample of prompts -> plan and sweep of their tree, in int8 and with dense weights -> scores -> compared,
before the job itself begins. Costs two more reads of the checkpoint. Knows nothing of how int8 computes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import numpy as np

from strata.engine.config import ScoreConfig
from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Job, Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, Prompt, QuestionScores

LARGEST_MARGIN_ERROR = 0.5
"""Of the error of margins over the margins: beyond it, many of the best options are bound to change."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far scores are from those of a more exact run of the same questions.

    Attributes:
        questions: how many were compared.
        top1_agreement: share whose best option is the same.
        margin_rms_error: RMS over the questions of (margin - exact margin), where the margin is the score of
            the exact run's best option minus that of its second.
        margin_rms: RMS of the exact margins, to compare the error with.
        score_rms_error: RMS over all options of the difference of scores, each question's mean removed.
    """

    questions: int
    top1_agreement: float
    margin_rms_error: float
    margin_rms: float
    score_rms_error: float

    @property
    def is_safe(self) -> bool:
        """Whether margins are mostly what they were."""
        return self.margin_rms_error <= LARGEST_MARGIN_ERROR * self.margin_rms


def compare_scores(found: Sequence[QuestionScores], exact: Sequence[QuestionScores]) -> Agreement:
    """Compares the scores of the same questions, in the same order."""
    margins, errors, differences = [], [], []
    for mine, theirs in zip(found, exact, strict=True):
        first, second = theirs.order[:2]
        margins.append(theirs.scores[first] - theirs.scores[second])
        errors.append(mine.scores[first] - mine.scores[second] - margins[-1])
        difference = mine.scores - theirs.scores
        differences.append(difference - difference.mean())
    same = [mine.order[0] == theirs.order[0] for mine, theirs in zip(found, exact, strict=True)]
    return Agreement(
        questions=len(same),
        top1_agreement=float(np.mean(same)),
        margin_rms_error=_rms(np.array(errors)),
        margin_rms=_rms(np.array(margins)),
        score_rms_error=_rms(np.concatenate(differences)),
    )


def sample_prompts(prompts: Sequence[Prompt], num: int) -> list[Prompt]:
    """`num` prompts spread evenly over the job, or all when there are fewer."""
    if num >= len(prompts):
        return list(prompts)
    return [prompts[(2 * index + 1) * len(prompts) // (2 * num)] for index in range(num)]


def check_int8(config: ScoreConfig, scorer: Scorer, job: Job, deadline: Deadline) -> dict[str, object]:
    """Scores a sample of an int8 job's questions with dense weights and without, before the job is run.

    Args:
        config: the run's settings.
        scorer: what will score, for where its bytes come from.
        job: what it will score.
        deadline: the check is left out where it would end later.

    Returns:
        What run.json keeps, under `int8_check`: the fields of `Agreement`, whether that is safe, the dense
        dtype, seconds, bytes read; or why not. Nothing for a job that does not compute in int8, or that asks
        for no check. A job that is not safe is warned of, at once.
    """
    if job.machine.linear != "int8" or not config.int8_check_questions:
        return {}
    with scorer.session.timer.phase("int8 check"):
        sample = sample_prompts(job.prompts, config.int8_check_questions)
        try:
            return {"int8_check": _compare_with_dense(config, scorer, sample, deadline)}
        except InputError as error:
            return {"int8_check": {"skipped": str(error)}}


def _compare_with_dense(
    config: ScoreConfig, scorer: Scorer, sample: Sequence[Prompt], deadline: Deadline
) -> dict[str, object]:
    started = perf_counter()
    as_run = _score_sample(config, config.machine, scorer, sample, deadline)
    if as_run is None:
        return {"skipped": "no time before the deadline"}
    dense = _score_sample(
        config, replace(config.machine, dtype="auto", verify=False), scorer, sample, deadline
    )
    if dense is None:
        return {"skipped": "no time before the deadline"}
    agreement = compare_scores(as_run.scores, dense.scores)
    if not agreement.is_safe:
        warning = describe_unsafe(agreement)
        scorer.session.warnings.say(warning)
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return {
        **asdict(agreement),
        "is_safe": agreement.is_safe,
        "dense_dtype": dense.dtype,
        "seconds": perf_counter() - started,
        "bytes_read": as_run.bytes_read + dense.bytes_read,
    }


def describe_unsafe(agreement: Agreement) -> str:
    """One line on an int8 job whose answers are not those of the dense model."""
    return (
        f"int8 changes this model's answers: on {agreement.questions} of the questions margins are off by "
        f"{agreement.margin_rms_error:.3g} and are {agreement.margin_rms:.3g} themselves (RMS), and "
        f"{agreement.top1_agreement:.0%} of the best options stay; expected another --dtype, or a checkpoint "
        "of `strata pack --format int8 --calibrate`"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSample:
    """Scores of the sample's questions in order, the dtype of activations, and bytes read."""

    scores: list[QuestionScores]
    dtype: str
    bytes_read: int


def _score_sample(
    config: ScoreConfig,
    machine: MachineSettings,
    scorer: Scorer,
    sample: Sequence[Prompt],
    deadline: Deadline,
) -> ScoredSample | None:
    """None where it would end after the deadline."""
    overrides = replace(config.plan, num_groups=1, resident_layers=None)
    session = Session(folder=config.out, overrides=overrides, products=scorer.session.products)
    with Scorer.open(config.members(), machine, session=session, source=scorer.source) as opened:
        job = opened.prepare(sample)
        if not deadline.allows(job.predicted_s):
            return None
        found = {row.question.id: row for rows in job.groups(Deadline()) for row in rows}
        return ScoredSample(
            scores=[found[prompt.question.id] for prompt in sample],
            dtype=str(job.machine.dtype).removeprefix("torch."),
            bytes_read=job.measure().bytes_read,
        )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
