"""What a pipeline will take, unit by unit, before anything is computed; and when each unit has to end.

Contexts that are searched only later are taken to be as long as their budget. A rule on scores says nothing
of how many questions it will choose: ASSUMED_SHARE of them is taken, and said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Session
from strata.engine.pipeline.chunks import SAMPLE, Cost
from strata.engine.pipeline.config import Pipeline, Stage
from strata.engine.pipeline.fitted import Fitted
from strata.engine.pipeline.units import Unit, units_of
from strata.engine.scorer import Scorer
from strata.engine.types import Question

ASSUMED_SHARE = 0.3
DEFAULT_CONTEXT_TOKENS = 1000


@dataclass(frozen=True, kw_only=True)
class UnitForecast:
    """What a unit is expected to take.

    Attributes:
        unit: which.
        stage: the name of its stage.
        num_questions: that it will score.
        is_assumed: that number is a guess.
        seconds: of its sweeps, loading aside.
        plan: its plan, as run.json keeps one.
    """

    unit: Unit
    stage: str
    num_questions: int
    is_assumed: bool
    seconds: float
    plan: dict[str, Any]


def forecast(
    pipeline: Pipeline,
    questions: Sequence[Question],
    session: Session,
    *,
    fitted: Fitted,
    profile: str | None = None,
    samples: bool = False,
) -> list[UnitForecast]:
    """Opens every unit and plans it; reads no weights and searches nothing.

    Args:
        pipeline: whose units.
        questions: that the first stage takes.
        session: of the caller.
        fitted: from an earlier run, if any.
        profile: for the machine of a profile instead of this one.
        samples: render a few questions only, and take the others to be like them.

    Raises:
        InputError: whatever is wrong with a member's files or settings.
    """
    _check_paths(pipeline)
    found = []
    for index, stage in enumerate(pipeline.stages):
        share, is_assumed = expected_share(stage, fitted)
        num = max(1, math.ceil(share * len(questions)))
        for unit in units_of(pipeline, index):
            asked = _with_filler(questions[:num], pipeline, unit)
            with Scorer.open(unit.members, unit.machine, session=session, profile=profile) as scorer:
                job = scorer.plan(asked[:: math.ceil(num / SAMPLE)] if samples else asked)
                found.append(
                    UnitForecast(
                        unit=unit,
                        stage=stage.name,
                        num_questions=num,
                        is_assumed=is_assumed,
                        seconds=Cost.of(job).seconds(num) if samples else job.predicted_s,
                        plan=job.describe(),
                    )
                )
    return found


def _check_paths(pipeline: Pipeline) -> None:
    for name, placed in pipeline.members.items():
        for key, path in (("model", placed.member.model), ("adapter", placed.member.adapter)):
            if path is not None and not path.exists():
                raise pipeline.file.error(("members", name, key), f"{path}: no such file or folder")


def expected_share(stage: Stage, fitted: Fitted) -> tuple[float, bool]:
    """The share of questions that a stage will take, and whether that is a guess."""
    if stage.rule is None:
        return 1.0, False
    if stage.rule.least_sure is not None:
        return stage.rule.least_sure, False
    if stage.rule.risk is not None and stage.name not in fitted.samples:
        return 1.0, False
    return ASSUMED_SHARE, True


def deadline_of_unit(
    forecasts: Sequence[UnitForecast], position: int, final: Deadline, factor: float
) -> Deadline:
    """When a unit has to end, so that those after it have their share of the time.

    The units of the first stage share all the time there is among themselves, for its answers are everybody's
    ground; later ones share what it leaves, each as much of it as of the predicted seconds.

    Args:
        forecasts: of all units, in order.
        position: which unit is about to begin.
        final: when the last has to end.
        factor: measured over predicted seconds so far.
    """
    if final.at_s is None:
        return final
    first_stage = forecasts[position].unit.stage == 0
    rivals = [one for one in forecasts[position:] if not first_stage or one.unit.stage == 0]
    wanted_s = factor * sum(one.seconds for one in rivals)
    left_s = final.left_s
    if wanted_s <= left_s or wanted_s == 0:
        return final
    share_s = left_s * factor * forecasts[position].seconds / wanted_s
    return replace(final, at_s=final.at_s - left_s + share_s)


def _with_filler(questions: Sequence[Question], pipeline: Pipeline, unit: Unit) -> list[Question]:
    """Questions with contexts of the length that their source may fill; no two share a beginning."""
    fillers = {
        name: " the" * int(pipeline.retrieval[name].get("context_tokens", DEFAULT_CONTEXT_TOKENS))
        for name in unit.contexts
        if name in pipeline.retrieval
    }
    return [
        replace(question, contexts=tuple((name, f"{question.id}{text}") for name, text in fillers.items()))
        for question in questions
    ]
