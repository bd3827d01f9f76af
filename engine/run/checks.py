"""What is checked of weights before a run computes with them, and what run.json keeps of it."""

from __future__ import annotations

from strata.engine.config import ScoreConfig
from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Job
from strata.engine.run.int8_check import check_int8
from strata.engine.scorer import Scorer


def check_weights(config: ScoreConfig, scorer: Scorer, job: Job, deadline: Deadline) -> dict[str, object]:
    """The probe of streamed weights, and the int8 check, each where it is wanted.

    Raises:
        InputError: weights give other readouts than an independent computation.
    """
    probe = scorer.check_known_answers(job.prompts) if config.probe else "skipped (--no-probe)"
    return {"probe": probe} | check_int8(config, scorer, job, deadline)
