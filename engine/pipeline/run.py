"""The run of a pipeline: stages in order, every group safe on disk, a whole submission at every moment.

Flow: questions -> contexts begin to be searched -> for each stage: the questions that its rule chooses,
hardest first -> for each unit: scores in chunks -> scoreboard -> submission.csv, written anew -> in the end
weights and calibration (fitted here or before), scores.parquet, run.json, report.html.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from strata.engine.calibration.registry import calibrate
from strata.engine.calibration.reliability import describe_reliability
from strata.engine.deadline import Deadline
from strata.engine.folder_lock import lock_folder
from strata.engine.jobs.ensemble_job import parts_of
from strata.engine.jobs.job import Session
from strata.engine.pipeline.account import StageAccount, account_of_run
from strata.engine.pipeline.chunks import Pace, Watch
from strata.engine.pipeline.config import Pipeline
from strata.engine.pipeline.contexts import ContextShelf, Finder
from strata.engine.pipeline.fitted import FILE_NAME, Fitted, fit_on_answers, settle_fitted
from strata.engine.pipeline.forecast import UnitForecast, deadline_of_unit, forecast
from strata.engine.pipeline.read_ahead import ReadAhead
from strata.engine.pipeline.scoreboard import Scoreboard
from strata.engine.pipeline.selection import choose_questions
from strata.engine.pipeline.settings import RunSettings
from strata.engine.pipeline.units import Asked, Unit, score_unit, units_of
from strata.engine.questions.metrics import evaluate
from strata.engine.questions.question_file import read_questions
from strata.engine.report.report import leave_report
from strata.engine.results.peak_memory import PeakMemory
from strata.engine.results.phases import PhaseTimer
from strata.engine.results.run_record import RunRecord
from strata.engine.run.artefacts import (
    check_out,
    check_unfinished,
    describe_prompts,
    remove_artefacts,
    write_artefacts,
)
from strata.engine.run.computing import recorded_products
from strata.engine.run.position_bias import describe_position_bias
from strata.engine.types import Prompt, Question, QuestionScores, RunWarnings

FINISH_SHARE, LEAST_FINISH_S, MOST_FINISH_S = 0.01, 5.0, 60.0
"""Of the time until the deadline, what is kept for fitting and writing artefacts."""
MOST_FINISH_SHARE = 0.2

Tell = Callable[[StageAccount], None]
"""Told of each stage as it ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PipelineRun:
    """What a run found: the answers in the file's order, run.json's content, and the folder it left."""

    scores: list[QuestionScores]
    record: dict[str, Any]
    out: Path


@dataclass(kw_only=True, eq=False)
class _Work:
    """What the stages of a run share."""

    pipeline: Pipeline
    settings: RunSettings
    session: Session
    board: Scoreboard
    shelf: ContextShelf
    fitted: Fitted
    forecasts: list[UnitForecast]
    final: Deadline
    pace: Pace
    accounts: list[StageAccount]
    shortened: Counter[str] = field(default_factory=Counter)

    def note_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Adds up how many prompts have contexts and how many were shortened, over all members."""
        parts = [part for prompt in prompts for part in parts_of(prompt)]
        self.shortened.update(describe_prompts(parts))

    @property
    def questions(self) -> Sequence[Question]:
        return self.board.questions


def run_pipeline(
    pipeline: Pipeline,
    settings: RunSettings,
    finders: Mapping[str, Finder],
    tell: Tell = lambda account: None,
) -> PipelineRun:
    """Runs the stages and leaves the artefacts in `settings.out`.

    Args:
        pipeline: what to run.
        settings: on what, and where to.
        finders: how each context source that members use is searched.
        tell: told of each stage as it ends.

    Raises:
        InputError: bad input, a finished run in the folder, or another one at work there.
        OutputError: an artefact cannot be written.
        FloatingPointError: scores that are not finite even in float32.
    """
    started = perf_counter()
    settings.check()
    check_out(settings.out)
    with lock_folder(settings.out, "--out"):
        return _run(pipeline, settings, finders, tell, started)


def _run(
    pipeline: Pipeline, settings: RunSettings, finders: Mapping[str, Finder], tell: Tell, started: float
) -> PipelineRun:
    check_unfinished(settings.out, may_replace=settings.overwrite or settings.resume)
    warnings, out = RunWarnings(strict=settings.strict), settings.out
    session = Session(
        warnings=warnings,
        timer=PhaseTimer(),
        folder=out,
        shows_progress=settings.progress,
        products=recorded_products(out) if settings.resume else None,
    )
    config = asdict(settings) | {"pipeline": pipeline.file.values}
    with RunRecord(out / "run.json", config, warnings) as record, PeakMemory() as memory:
        for name in pipeline.unused_sources:
            warnings.say(f"retrieval.{name}: no member's context names it; it is not searched")
        questions = _read(pipeline, settings, session)
        fitted = settle_fitted(pipeline, sum(question.answer is not None for question in questions))
        forecasts = forecast(pipeline, questions, session, fitted=fitted, samples=True)
        record.plan = {"units": [_as_record(one) for one in forecasts]}
        record.begin()
        if not settings.resume:
            _remove_former(out, pipeline)
        shelf = ContextShelf(
            questions=questions,
            finders=finders,
            settings=pipeline.retrieval,
            folder=out / "contexts",
            resumes=settings.resume,
        )
        with shelf:
            work = _Work(
                pipeline=pipeline,
                settings=settings,
                session=session,
                board=Scoreboard(pipeline=pipeline, questions=questions, weights=_weights(pipeline, fitted)),
                shelf=shelf,
                fitted=fitted,
                forecasts=forecasts,
                final=_final(pipeline, started),
                pace=Pace(),
                accounts=[],
            )
            work.board.write_submission(out, pipeline.output.submission)
            for index in range(len(pipeline.stages)):
                account = _run_stage(work, index)
                work.accounts.append(account)
                tell(account)
        scores = _finish(work, record)
        record.measured |= account_of_run(session.timer, memory, perf_counter() - started)
        finished = record.as_dict() | {"status": "done"}
        leave_report(out, finished, scores, session.timeline, shelf.found())
    return PipelineRun(scores=scores, record=finished, out=out)


def _read(pipeline: Pipeline, settings: RunSettings, session: Session) -> list[Question]:
    with session.timer.phase("read input"):
        return read_questions(
            settings.questions,
            context_column=pipeline.input.context_column,
            id_column=pipeline.input.id_column,
            limit=settings.num_questions,
            warnings=session.warnings,
        )


def _remove_former(out: Path, pipeline: Pipeline) -> None:
    """Removes what an earlier run left, but for the fitted values that this one goes by."""
    remove_artefacts(out)
    former = out / FILE_NAME
    if pipeline.fitted is None or pipeline.fitted.resolve() != former.resolve():
        former.unlink(missing_ok=True)


def _final(pipeline: Pipeline, started: float) -> Deadline:
    whole = Deadline.after(started, pipeline.deadline)
    if whole.at_s is None:
        return whole
    return Deadline(at_s=whole.at_s - finish_s(whole.at_s - started), gives_up=True)


def finish_s(allowed_s: float) -> float:
    """Seconds of those allowed that are kept for the end of a run."""
    wanted = min(MOST_FINISH_S, max(LEAST_FINISH_S, FINISH_SHARE * allowed_s))
    return min(wanted, MOST_FINISH_SHARE * allowed_s)


def _weights(pipeline: Pipeline, fitted: Fitted) -> dict[str, float]:
    given = {name: member.weight for name, member in pipeline.members.items()}
    return fitted.weights or given


def _run_stage(work: _Work, index: int) -> StageAccount:
    """Scores the questions of a stage by all its members, as far as time allows."""
    started = perf_counter()
    chosen = choose_questions(work.pipeline, index, work.board, work.fitted)
    before = work.board.answers(index - 1) if index else []
    for unit in units_of(work.pipeline, index):
        _run_unit(work, unit, [question.id for question in chosen])
    return StageAccount.of(
        work.board,
        index,
        chosen=chosen,
        before=before,
        seconds=perf_counter() - started,
    )


def _run_unit(work: _Work, unit: Unit, chosen: Sequence[str]) -> None:
    position = next(place for place, one in enumerate(work.forecasts) if one.unit == unit)
    deadline = deadline_of_unit(work.forecasts, position, work.final, work.pace.factor)
    if not chosen or deadline.left_s <= 0:
        return
    ahead = ReadAhead(_next_model(work, position))
    asked = Asked(
        questions=work.shelf.take(unit.contexts),
        chosen=chosen,
        source=str(work.settings.questions),
        probe=work.settings.probe,
        resumes=work.settings.resume,
        watch=Watch(before_last=ahead.begin, rendered=work.note_prompts),
    )
    with ahead:
        for rows in score_unit(unit, asked, work.session, deadline, work.pace):
            if rows:
                work.board.add(unit.names, rows)
                work.board.write_submission(work.settings.out, work.pipeline.output.submission)


def _next_model(work: _Work, position: int) -> Path | None:
    """The base of the next unit, where that is another one."""
    now = work.forecasts[position].unit.members[0].model
    later = (one.unit.members[0].model for one in work.forecasts[position + 1 :])
    return next((model for model in later if model.resolve() != now.resolve()), None)


def _finish(work: _Work, record: RunRecord) -> list[QuestionScores]:
    """Fits what is to be fitted, calibrates, and leaves the answers."""
    board, pipeline, out = work.board, work.pipeline, work.settings.out
    fitted = fit_on_answers(pipeline, board, work.session.warnings) if pipeline.fits else work.fitted
    board.weights = _weights(pipeline, fitted)
    scores = board.answers()
    if fitted.calibration is not None:
        scores = calibrate(fitted.calibration, scores)
    board.warn_of_unreached(work.session.warnings)
    if pipeline.fits:
        fitted.write(out / FILE_NAME)
    record.metrics = evaluate(scores)
    if record.metrics is not None:
        record.metrics["position_bias"] = describe_position_bias(scores)
        record.metrics["reliability"] = describe_reliability(scores)
    record.measured = {
        "stages": [account.as_dict() for account in work.accounts],
        "members": board.describe_members(),
        "fitted": fitted.account,
        "weights": board.weights,
        "resumed_layers": work.session.states.resumed_layers,
        **work.shortened,
    }
    with work.session.timer.phase("write"):
        write_artefacts(out, scores, None, pipeline.output.submission)
    return scores


def _as_record(one: UnitForecast) -> dict[str, Any]:
    return {
        "stage": one.stage,
        "members": list(one.unit.names),
        "num_questions": one.num_questions,
        "is_assumed": one.is_assumed,
        "predicted_s": one.seconds,
        "plan": one.plan,
    }
