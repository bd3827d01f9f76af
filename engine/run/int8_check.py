"""What `--dtype int8` does to scores: a sample of the job's own questions, scored again without it.

Flow: sample of prompts -> plan and sweep of their tree with dense weights -> scores -> compared with the
run's. Costs one more read of the checkpoint. Knows nothing of how int8 computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import numpy as np

from strata.engine.config import ScoreConfig
from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Job, Session
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, Prompt, QuestionScores


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


def check_int8(
    config: ScoreConfig,
    scorer: Scorer,
    job: Job,
    scores: Mapping[str, QuestionScores],
    deadline: Deadline,
) -> dict[str, object]:
    """Scores a sample of an int8 run's questions with dense weights and compares.

    Args:
        config: the run's settings.
        scorer: what scored, for where its bytes come from.
        job: what it scored.
        scores: by question id.
        deadline: the check is left out where it would end later.

    Returns:
        What run.json keeps, under `int8_check`: the fields of `Agreement`, the dense dtype, seconds, bytes
        read; or why not. Nothing for a run that did not compute in int8, or that asks for no check.
    """
    if job.machine.linear != "int8" or not config.int8_check_questions:
        return {}
    with scorer.session.timer.phase("int8 check"):
        scored = [prompt for prompt in job.prompts if prompt.question.id in scores]
        sample = sample_prompts(scored, config.int8_check_questions)
        if not sample:
            return {"int8_check": {"skipped": "no question was scored"}}
        try:
            return {"int8_check": _compare_with_dense(config, scorer, sample, scores, deadline)}
        except InputError as error:
            return {"int8_check": {"skipped": str(error)}}


def _compare_with_dense(
    config: ScoreConfig,
    scorer: Scorer,
    sample: Sequence[Prompt],
    scores: Mapping[str, QuestionScores],
    deadline: Deadline,
) -> dict[str, object]:
    started = perf_counter()
    overrides = replace(config.plan, num_groups=1, resident_layers=None)
    session = Session(folder=config.out, overrides=overrides)
    settings = replace(config.machine, dtype="auto", verify=False)
    with Scorer.open(config.members(), settings, session=session, source=scorer.source) as dense:
        job = dense.prepare(sample)
        if not deadline.allows(job.predicted_s):
            return {"skipped": f"no time before the deadline (about {job.predicted_s:.0f} s)"}
        exact = {row.question.id: row for rows in job.groups(Deadline()) for row in rows}
        ids = [prompt.question.id for prompt in sample]
        agreement = compare_scores([scores[name] for name in ids], [exact[name] for name in ids])
        return {
            **asdict(agreement),
            "dense_dtype": str(job.machine.dtype).removeprefix("torch."),
            "seconds": perf_counter() - started,
            "bytes_read": job.measure().bytes_read,
        }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
