"""The main job: from a question file to the artefacts of a run. The only room that knows both.

questions -> prompts -> job -> groups of scores, each safe on disk as it ends -> submission.csv,
scores.parquet, run.json, report.html, and prompts.jsonl on request. Decoders and encoders go the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from strata.engine.config import ScoreConfig
from strata.engine.deadline import Deadline
from strata.engine.folder_lock import lock_folder
from strata.engine.jobs.job import Job, Session
from strata.engine.machine.product_rates import ProductRates
from strata.engine.plan.overrides import BEFORE_DEADLINE, RESUMABLE, GroupGoal
from strata.engine.questions.label_metrics import evaluate_labels
from strata.engine.questions.metrics import evaluate
from strata.engine.report.report import leave_report
from strata.engine.results.partial_scores import PartialScores
from strata.engine.results.peak_memory import PeakMemory, reset_device_peaks
from strata.engine.results.phases import PhaseTimer
from strata.engine.results.run_record import RunRecord
from strata.engine.run.artefacts import (
    check_out,
    check_unfinished,
    describe_adapter_settings,
    describe_answers,
    describe_cache,
    describe_measured,
    describe_prompts,
    remove_artefacts,
    report_oddities,
    write_artefacts,
)
from strata.engine.run.computing import recorded_products, tell_computing
from strata.engine.run.opening import open_run
from strata.engine.run.place import Place, open_place
from strata.engine.run.position_bias import describe_position_bias
from strata.engine.run.unreached import UNREACHED, collect_scores
from strata.engine.scorer import Scorer
from strata.engine.sweep.kept_states import Pending
from strata.engine.types import Prompt, Question, QuestionScores, RunWarnings


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreRun:
    """What a run found: scores in the file's order, run.json's content, and the folder it left."""

    scores: list[QuestionScores]
    record: dict
    out: Path


def score_questions(config: ScoreConfig, products: ProductRates | None = None) -> ScoreRun:
    """Scores a question file and leaves the artefacts in `config.out`.

    Args:
        config: the run's settings.
        products: what decides what to compute in on a CPU; None: what a resumed run was decided by, or this
            machine's.

    Raises:
        InputError: bad input, a finished run in the folder, or another one at work there; nothing is left.
        OutputError: an artefact cannot be written; run.json says so where it can.
        FloatingPointError: scores that are not finite even in float32.
    """
    started = perf_counter()
    config.check()
    check_out(config.out)
    with lock_folder(config.out, "--out"):
        return _score_questions(config, started, products)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """A run's questions as prompts, and what of them an interrupted run has scored.

    Attributes:
        prompts: of all questions.
        fingerprint: of all that decides their scores.
        kept: where scores are made safe.
        done: scores of an interrupted run, by question id.
    """

    prompts: Sequence[Prompt]
    fingerprint: str
    kept: PartialScores
    done: dict[str, QuestionScores]

    @property
    def left(self) -> Sequence[Prompt]:
        """The prompts still to score; were all done, the last: a run has something to measure."""
        left = [prompt for prompt in self.prompts if prompt.question.id not in self.done]
        return left or self.prompts[-1:]


def _score_questions(config: ScoreConfig, started: float, products: ProductRates | None) -> ScoreRun:
    check_unfinished(config.out, may_replace=config.overwrite or config.resume)
    if config.resume and products is None:
        products = recorded_products(config.out)
    warnings, out = RunWarnings(strict=config.strict), config.out
    session = Session(
        warnings=warnings,
        timer=PhaseTimer(),
        overrides=config.plan,
        folder=out,
        shows_progress=config.progress,
        products=products,
    )
    with RunRecord(out / "run.json", config.as_flags(), warnings) as record, PeakMemory() as memory:
        deadline = Deadline.after(started, config.deadline)
        with open_run(config, session) as (questions, scorer), open_place(config, scorer) as place:
            asked = _ask(config, questions, scorer)
            job = _prepare(config, asked, place, session)
            record.plan = job.describe() | describe_adapter_settings(config)
            if config.progress:
                tell_computing(job.machine)
            record.begin()
            checked = place.check(job, deadline)
            remove_artefacts(out)
            reset_device_peaks(job.machine.devices)
            found = asked.done | _run(job, asked.kept, deadline, resume=config.resume)
            reached = scorer.finish(list(found.values()))
            scores = collect_scores(questions, reached, warnings)
            record.metrics = _evaluate(scores, are_labels=bool(scorer.labels))
            with session.timer.phase("write"):
                texts = scorer.with_texts(asked.prompts) if config.save_prompts else None
                write_artefacts(out, scores, texts, config.submission)
                if not warnings.rows.get(UNREACHED):
                    asked.kept.remove()
            record.measured = (
                describe_measured(job, session.timer, memory)
                | describe_prompts(asked.prompts)
                | describe_answers(reached, record.plan.get("head"), config.debias, warnings)
                | {"resumed_questions": len(asked.done), "resumed_layers": session.states.resumed_layers}
                | describe_cache(scorer.source, warnings)
                | checked
            )
        report_oddities(job, memory.peak_bytes - memory.baseline_bytes, warnings)
        finished = record.as_dict() | {"status": "done"}
        leave_report(out, finished, scores, session.timeline)
    return ScoreRun(scores=scores, record=finished, out=out)


def _ask(config: ScoreConfig, questions: Sequence[Question], scorer: Scorer) -> _Asked:
    """Renders the questions, and reads what an interrupted run has scored of them."""
    prompts = scorer.render(questions, str(config.questions))
    fingerprint = scorer.fingerprint(prompts)
    kept = PartialScores(config.out, fingerprint)
    done = kept.read(questions) if config.resume else {}
    return _Asked(prompts=prompts, fingerprint=fingerprint, kept=kept, done=done)


def _prepare(config: ScoreConfig, asked: _Asked, place: Place, session: Session) -> Job:
    """Plans what is left, cut as before where hidden states of it were kept."""
    left = asked.left
    ids = [prompt.question.id for prompt in left] if config.resume else None
    session.states.open(config.out / "states", asked.fingerprint, ids, session.warnings.say)
    return place.prepare(left, group_goal_of(config, session.states.pending))


def _evaluate(scores: Sequence[QuestionScores], *, are_labels: bool) -> dict[str, Any] | None:
    """Metrics where answers are known."""
    if are_labels:
        return evaluate_labels(scores)
    metrics = evaluate(scores)
    return None if metrics is None else metrics | {"position_bias": describe_position_bias(scores)}


def group_goal_of(config: ScoreConfig, pending: Pending | None = None) -> GroupGoal:
    """How finely a run is cut that may end early; one that has hidden states to go on from as it was."""
    if pending is not None:
        return GroupGoal(least=pending.num_groups)
    if config.deadline is not None:
        return BEFORE_DEADLINE
    return RESUMABLE if config.resume else GroupGoal()


def _run(job: Job, kept: PartialScores, deadline: Deadline, *, resume: bool) -> dict[str, QuestionScores]:
    """Scores by question id, each group's safe on disk before the next begins."""
    kept.start(resume=resume)
    by_id: dict[str, QuestionScores] = {}
    for scores in job.groups(deadline):
        kept.add(scores)
        by_id |= {row.question.id: row for row in scores}
    return by_id
