"""What `--dtype int8` does to scores: a sample of the job's own questions, scored again without it.

Flow: sample of prompts -> plan and sweep of their tree with dense weights -> scores -> compared with the
run's. Costs one more read of the checkpoint. Knows nothing of how int8 computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import numpy as np

from strata.engine.deadline import SAFETY
from strata.engine.plan.sweep_job import plan_job
from strata.engine.scorer import ScoringJob, score_members
from strata.engine.sweep.sweep import run_sweep
from strata.engine.tree.prefix_tree import build_prefix_tree
from strata.engine.tree.targets import build_target_table
from strata.engine.types import InputError, Prompt, QuestionScores
from strata.engine.weights.byte_sources import ByteSource
from strata.engine.weights.tensor_reader import TensorReader


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
    job: ScoringJob,
    scores: Mapping[str, QuestionScores],
    num_questions: int,
    source: ByteSource,
    deadline_s: float | None,
) -> dict[str, object]:
    """Scores a sample with dense weights and compares.

    Args:
        job: the int8 job.
        scores: its scores by question id.
        num_questions: size of the sample.
        source: where the checkpoint's bytes come from.
        deadline_s: value of `time.perf_counter()` by which the check should have ended; None for none.

    Returns:
        What run.json keeps: the fields of `Agreement`, the dense dtype, seconds, bytes read; or why not.
    """
    started = perf_counter()
    prompts = [prompt for prompt in job.prompts if prompt.question.id in scores]
    if not prompts:
        return {"skipped": "no question was scored"}
    prompts = sample_prompts(prompts, num_questions)
    try:
        dense = dense_job(job, prompts)
    except InputError as error:
        return {"skipped": str(error)}
    if deadline_s is not None and started + SAFETY * dense.plan.predicted_s > deadline_s:
        return {"skipped": f"no time before the deadline (about {dense.plan.predicted_s:.0f} s)"}
    with closing(TensorReader(source)) as reader:
        swept = run_sweep(dense.sweep, reader, job.config.out)
        exact = score_members(dense, prompts, dense.targets, swept, reader)
    agreement = compare_scores([scores[row.question.id] for row in exact], exact)
    return {
        **asdict(agreement),
        "dense_dtype": dense.plan.dtype,
        "seconds": perf_counter() - started,
        "bytes_read": reader.num_bytes_read,
    }


def dense_job(job: ScoringJob, prompts: list[Prompt]) -> ScoringJob:
    """The job of some of the prompts, planned anew with dense weights."""
    config = replace(
        job.config, dtype="auto", num_groups=1, resident_layers=None, deadline=None, resume=False
    )
    tree = build_prefix_tree([branch.token_ids for prompt in prompts for branch in prompt.branches])
    targets = build_target_table(prompts, tree)
    planned = plan_job(config, job.head, job.checkpoint, job.sweep.adapters, prompts, tree, targets)
    return replace(
        job,
        config=config,
        prompts=prompts,
        all_prompts=prompts,
        targets=targets,
        sweep=planned.sweep,
        completed=planned.completed,
        rates=planned.rates,
        budgets=planned.budgets,
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
