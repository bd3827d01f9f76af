"""What is fitted on answered questions, for runs on questions without answers: weights, calibration, samples.

Flow: a run whose file asks for fitting, on answered questions -> `fit_on_answers` -> fitted.json in its
folder -> the same file with `fitted: runs/valid/fitted.json`, on any questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from strata.engine.calibration.isotonic import require_scikit_learn
from strata.engine.calibration.registry import Calibration, calibrate, fit_calibration, read_calibration
from strata.engine.calibration.reliability import describe_reliability
from strata.engine.ensembles.fit import fit_weights
from strata.engine.ensembles.risk import CascadeSample, certify_share, sample_of
from strata.engine.files import to_json, write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json
from strata.engine.pipeline.config import Pipeline
from strata.engine.pipeline.scoreboard import Scoreboard
from strata.engine.types import InputError, QuestionScores, RunWarnings

FILE_NAME = "fitted.json"


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What was fitted; empty parts were not asked for.

    Attributes:
        weights: of members by name.
        calibration: of the final probabilities.
        samples: by the name of a stage with a risk, what its share is chosen by.
        account: how good each is on the questions that it was fitted on, cross-validated where it says so.
    """

    weights: dict[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None
    samples: dict[str, CascadeSample] = field(default_factory=dict)
    account: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Leaves fitted.json.

        Raises:
            OutputError: it cannot be written.
        """
        content = {
            "weights": self.weights,
            "calibration": None if self.calibration is None else self.calibration.as_dict(),
            "samples": {
                stage: {
                    "doubts": sample.doubts.tolist(),
                    "small_right": sample.small_right.tolist(),
                    "big_right": sample.big_right.tolist(),
                    "taken_right": sample.taken_right.tolist(),
                }
                for stage, sample in self.samples.items()
            },
            "account": self.account,
        }
        write_text_atomically(path, json.dumps(to_json(content)) + "\n")


class _Sample(Schema):
    doubts: list[float]
    small_right: list[bool]
    big_right: list[bool]
    taken_right: list[bool]


class _File(Schema):
    """fitted.json."""

    weights: dict[str, float]
    calibration: dict[str, Any] | None
    samples: dict[str, _Sample]


def read_fitted(path: Path) -> Fitted:
    """Reads what `Fitted.write` left.

    Raises:
        InputError: it is not that.
    """
    file = check_schema(_File, read_json(path), str(path))
    samples = {}
    for stage, sample in file.samples.items():
        columns = {name: np.array(values) for name, values in sample.model_dump().items()}
        if len({len(column) for column in columns.values()}) != 1 or not len(sample.doubts):
            raise InputError(f"{path}: samples.{stage}: expected columns of one length, at least 1")
        samples[stage] = CascadeSample(**columns)
    calibration = None if file.calibration is None else read_calibration(file.calibration, str(path))
    return Fitted(weights=file.weights, calibration=calibration, samples=samples)


def settle_fitted(pipeline: Pipeline, num_answered: int) -> Fitted:
    """What a run begins with: an earlier run's values, or none yet.

    Args:
        pipeline: what is to be fitted, and where an earlier run's file is.
        num_answered: questions with a known answer, which values could be fitted on.

    Raises:
        InputError: no file where there is no answer either, or one that lacks what is needed; or nothing is
            installed that can fit what is asked for.
    """
    if pipeline.fitted is None:
        if pipeline.fits and not num_answered:
            raise pipeline.file.error(
                (),
                "weights, calibration or risk are to be fitted, but no question has an answer; expected "
                "answers, or `fitted: FILE` of a run on answered questions",
            )
        if pipeline.calibration == "isotonic":
            require_scikit_learn()
        return Fitted()
    fitted = read_fitted(pipeline.fitted)
    if pipeline.ensemble.weights == "fit" and set(fitted.weights) != set(pipeline.members):
        raise InputError(
            f"{pipeline.fitted}: weights of {', '.join(fitted.weights) or 'nobody'}; "
            f"expected those of {', '.join(pipeline.members)}"
        )
    if pipeline.calibration != "none" and fitted.calibration is None:
        raise InputError(f"{pipeline.fitted}: holds no calibration; expected {pipeline.calibration}")
    for stage in pipeline.stages:
        if stage.rule is not None and stage.rule.risk is not None and stage.name not in fitted.samples:
            raise InputError(f"{pipeline.fitted}: holds no sample of stage {stage.name!r}; expected one")
    return fitted


Fit = Callable[[Fitted, Pipeline, Scoreboard], Fitted]
"""Adds one part to what is fitted."""


def fit_on_answers(pipeline: Pipeline, board: Scoreboard, warnings: RunWarnings) -> Fitted:
    """Fits what the file asks for on the questions whose answer is known; the board gets the weights.

    What there is nothing to fit on, since a deadline came before a member or stage, is left out and told: by
    then the answers are there. Calibration comes last, on what the fitted weights make of the members.
    """
    fitted = Fitted()
    fits: list[tuple[str, Fit]] = [
        ("weights", _with_weights),
        *((f"share of {stage.name}", partial(_with_share, n)) for n, stage in enumerate(pipeline.stages)),
        ("calibration", _with_calibration),
    ]
    for what, fit in fits:
        try:
            fitted = fit(fitted, pipeline, board)
        except InputError as error:
            warnings.say(f"{what} not fitted: {error}")
    return fitted


def _with_weights(fitted: Fitted, pipeline: Pipeline, board: Scoreboard) -> Fitted:
    if pipeline.ensemble.weights != "fit":
        return fitted
    said = {name: list(board.by_member.get(name, {}).values()) for name in pipeline.members}
    found = fit_weights(said, over=pipeline.ensemble.over)
    board.weights = dict(found.combination.weights)
    return replace(fitted, weights=board.weights, account=fitted.account | {"weights": found.as_dict()})


def _with_share(index: int, fitted: Fitted, pipeline: Pipeline, board: Scoreboard) -> Fitted:
    stage = pipeline.stages[index]
    if stage.rule is None or stage.rule.risk is None:
        return fitted
    sample = _sample_of(board, index, stage.rule.by)
    share, is_certified = certify_share(sample, sample.doubts, risk=stage.rule.risk, replaces=stage.replaces)
    told = {
        "risk": stage.rule.risk,
        "share": share,
        "is_certified": is_certified,
        "num_questions": len(sample.doubts),
    }
    return replace(
        fitted,
        samples=fitted.samples | {stage.name: sample},
        account=fitted.account | {f"share of {stage.name}": told},
    )


def _with_calibration(fitted: Fitted, pipeline: Pipeline, board: Scoreboard) -> Fitted:
    """It is told before and after; guesses of what nobody has scored have no part in it."""
    if pipeline.calibration == "none":
        return fitted
    scored = [board.answer(question) for question in board.questions if board.is_scored(question)]
    calibration = fit_calibration(pipeline.calibration, scored)
    told = {
        "before": describe_reliability(scored),
        "after": describe_reliability(calibrate(calibration, scored)),
    }
    return replace(fitted, calibration=calibration, account=fitted.account | {"calibration": told})


def _sample_of(board: Scoreboard, index: int, by: Any) -> CascadeSample:
    """What the stages before and the stage itself say of the answered questions that it has reached."""
    reached = [question for question in board.questions if board.is_reached(question, index)]
    small = [board.answer(question, index - 1) for question in reached]
    taken: list[QuestionScores] = [board.answer(question, index) for question in reached]
    return sample_of(small, taken, taken, by)
