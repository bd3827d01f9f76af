"""How good a reader is on the validation set while it learns. Knows no optimizer and no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from strata.engine.heads.probabilities import option_probabilities
from strata.engine.questions.label_metrics import evaluate_labels
from strata.engine.questions.metrics import evaluate
from strata.engine.types import QuestionScores
from strata.training.data.training_set import ExampleSource
from strata.training.loop.processes import Processes, gather_shares, share_of
from strata.training.tasks import Task
from strata.training.types import Example, Reader


class Evaluator:
    """Evaluates on the first examples of a validation set, rendered once and kept.

    Args:
        reader: what learns.
        source: the validation set.
        limit: how many examples; None takes all.
        task: lm has no options to rank.
        processes: who shares the work.
    """

    def __init__(
        self,
        reader: Reader,
        source: ExampleSource,
        *,
        limit: int | None,
        task: Task,
        processes: Processes,
    ) -> None:
        self._reader = reader
        self._source = source
        self._limit = limit
        self._task = task
        self._processes = processes

    @cached_property
    def examples(self) -> list[Example]:
        """The examples, options as the file has them."""
        num = len(self._source) if self._limit is None else min(self._limit, len(self._source))
        return self._source.read(self._reader, range(num), epoch=None)

    def evaluate(self) -> dict:
        """Loss and num_examples; map_at_3, accuracy and heuristics of questions, perplexity of passages.

        Raises:
            FloatingPointError: a score is not finite.
        """
        share = share_of(self.examples, self._processes)
        # More processes than examples leave some without any.
        scores = gather_shares(self._reader.score(share) if share else [], self._processes)
        for example, found in zip(self.examples, scores, strict=True):
            if not np.isfinite(found).all():
                raise FloatingPointError(
                    f"scores of validation question {example.prompt.question.id!r} are not finite"
                )
        measured = {
            "loss": float(self._reader.loss(scores, self.examples)),
            "num_examples": len(self.examples),
        }
        if self._task == "lm":
            # exp(709.8) is the largest float64.
            return measured | {"perplexity": math.exp(min(measured["loss"], 709.0))}
        return measured | rank_metrics(self.examples, scores)


def rank_metrics(examples: Sequence[Example], scores: Sequence[np.ndarray]) -> dict:
    """What the engine's `evaluate` says of scores [O] an example."""
    rows = [
        QuestionScores(
            question=example.prompt.question, scores=found, probabilities=option_probabilities(found)
        )
        for example, found in zip(examples, scores, strict=True)
    ]
    metrics = evaluate_labels(rows) if rows[0].question.is_text else evaluate(rows)
    assert metrics is not None
    return metrics


def metric_of(measured: dict) -> float:
    """What decides which evaluation is best, the higher the better: MAP@3, or minus the loss without it."""
    return measured.get("map_at_3", -measured["loss"])


def evaluations_of(lines: Sequence[dict]) -> list[dict]:
    """The evaluations of a log, with their steps."""
    return [{"step": line["step"]} | line["evaluation"] for line in lines if "evaluation" in line]


def last_evaluation(lines: Sequence[dict]) -> dict | None:
    """The last evaluation of a log."""
    return next(reversed(evaluations_of(lines)), None)
