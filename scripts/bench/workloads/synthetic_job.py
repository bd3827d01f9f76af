"""Jobs of random tokens on checkpoints of random weights: built, planned and run as `strata score` would.

A synthetic question looks as the yes-no head sees one: a prefix, a few options, two label tokens after each.
Knows no baselines and no rooflines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from strata.engine.config import ScoreConfig
from strata.engine.deadline import Deadline
from strata.engine.jobs.decoder_job import DecoderJob
from strata.engine.jobs.job import Session, WeightStream
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.plan.shapes import ModelShape
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.scorer import Scorer
from strata.engine.types import Branch, Prompt, Question, Target
from strata.engine.weights.byte_sources import ByteSource, FileSource
from strata.engine.weights.checkpoint_folder import weight_files
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.roofline import drop_page_cache
from strata.scripts.bench.timing import Stopwatch
from strata.scripts.bench.workloads.flops import useful_flops
from strata.scripts.bench.workloads.synthetic_questions import (
    LABEL_TOKENS,
    SyntheticQuestion,
    synthetic_questions,
    whole_rows,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticJob:
    """Questions of one size, as prompts; `flops` are the useful ones of one question."""

    questions: list[SyntheticQuestion]
    prompts: list[Prompt]
    flops: int


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticRun:
    """A job on a checkpoint with all decided: settings of `strata score`, and the plan they lead to."""

    job: SyntheticJob
    config: ScoreConfig
    plan: SweepPlan
    profile: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class JobRun:
    """One run: seconds of sweep and head, what the job says of itself, label differences [Q, O]."""

    seconds: float
    sweep_s: float
    group_s: list[float]
    weight_stream: WeightStream
    scores: np.ndarray


def make_job(shape: ModelShape, num_questions: int, size: QuestionSize) -> SyntheticJob:
    """Questions for a model of a shape."""
    questions = synthetic_questions(num_questions, size, vocab_size=shape.vocab_size)
    return SyntheticJob(
        questions=questions,
        prompts=[as_prompt(index, question) for index, question in enumerate(questions)],
        flops=useful_flops(shape, size, scored_tokens=size.num_options),
    )


def plan_synthetic(
    job: SyntheticJob, checkpoint: Path, folder: Path, *, profile: str | None = None, **settings: Any
) -> SyntheticRun:
    """A job planned on a checkpoint; settings are those of `strata score`, which runs keep to."""
    defaults: dict = {"model": checkpoint, "questions": checkpoint, "out": folder, "head": "yes-no"}
    config = ScoreConfig.from_flags(**(defaults | settings))
    with _open(config, profile, FileSource()) as scorer:
        planned = scorer.prepare(job.prompts)
        assert isinstance(planned, DecoderJob)
        plan = planned.sweep.plan
    kept = PlanOverrides(
        micro_batch_tokens=plan.micro_batch_tokens,
        num_groups=plan.num_groups,
        resident_layers=len(plan.resident_layers),
        hidden_store=plan.hidden_store,
    )
    machine = replace(config.machine, devices=",".join(plan.devices))
    return SyntheticRun(
        job=job, config=replace(config, plan=kept, machine=machine), plan=plan, profile=profile
    )


def run_synthetic(run: SyntheticRun, source: ByteSource | None = None, *, cold: bool = False) -> JobRun:
    """Runs a planned job on a model that is opened anew: nothing of it is in memory.

    Args:
        run: what to do.
        source: where bytes come from; the files themselves when absent.
        cold: drop the checkpoint's pages from memory first.
    """
    with _open(run.config, run.profile, source or FileSource()) as scorer:
        job = scorer.prepare(run.job.prompts)
        assert isinstance(job, DecoderJob)
        if cold:
            drop_page_cache([run.config.model])
        with Stopwatch(job.opened.model.devices[0]) as watch:
            rows = {row.question.id: row for group in job.groups(Deadline()) for row in group}
        stream = job.measure().weight_stream
    assert stream is not None
    return JobRun(
        seconds=watch.seconds,
        sweep_s=scorer.session.timer.seconds["sweep"],
        group_s=[group.seconds for group in job.swept],
        weight_stream=stream,
        scores=np.stack([rows[prompt.question.id].scores for prompt in run.job.prompts]),
    )


def _open(config: ScoreConfig, profile: str | None, source: ByteSource) -> Scorer:
    session = Session(overrides=config.plan, folder=config.out)
    return Scorer.open(config.members(), config.machine, session=session, source=source, profile=profile)


def as_prompt(index: int, question: SyntheticQuestion) -> Prompt:
    """A synthetic question as the yes-no head sees it: two label tokens after each option."""
    branches = []
    for option, row in enumerate(whole_rows(question)):
        token_ids = row.astype(np.int32)
        branches += [
            Branch(
                option=option,
                order=(),
                label=str(label),
                token_ids=token_ids,
                text="",
                targets=(Target(position=len(token_ids), token_id=label),),
            )
            for label in LABEL_TOKENS
        ]
    options = tuple(str(option) for option in range(len(question.option_ids)))
    return Prompt(question=Question(id=str(index), prompt="", options=options), branches=tuple(branches))


def checkpoint_bytes(checkpoint: Path) -> int:
    """Bytes of a checkpoint's weights on disk."""
    return sum(file.stat().st_size for file in weight_files(checkpoint))
