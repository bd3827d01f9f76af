"""After every group: heads on the questions it completes, partial results on disk, and a look at the clock.

Flow: readouts of a finished group -> scores of the questions whose last readout it holds -> partial.jsonl.
Questions that no group reached before the deadline get the longest option first. Knows nothing of how
readouts are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import torch

from strata.engine.debias import option_probabilities
from strata.engine.heads import CLASSIFIER_HEADS, TargetTable, average_members, score_classifier, score_tokens
from strata.engine.job import ScoringJob
from strata.engine.job_plan import branches_of
from strata.engine.metrics import longest_option_order
from strata.engine.safetensors_file import TensorReader
from strata.engine.sweep import SweepResult
from strata.engine.types import Prompt, Question, QuestionScores
from strata.engine.vocabulary import target_logits, vocabulary_projection

SAFETY = 1.1
"""A group is begun when this many times the longest group so far still fits before the deadline."""


class GroupScorer:
    """Scores questions group by group.

    Args:
        job: what is scored.
        reader: counts the bytes that heads read.
        save: called with the scores of each group.
        deadline_s: value of `time.perf_counter()` by which the last group should have ended; None for none.
    """

    def __init__(
        self,
        job: ScoringJob,
        reader: TensorReader,
        save: Callable[[Sequence[QuestionScores]], None],
        deadline_s: float | None,
    ) -> None:
        self.scores: dict[str, QuestionScores] = {}
        self.heads_s = 0.0
        self._job, self._reader, self._save, self._deadline_s = job, reader, save, deadline_s

    def finish_group(self, group: int, swept: SweepResult) -> bool:
        """Scores what the group completes. Returns whether there is time for another group."""
        started = perf_counter()
        job, completed = self._job, self._job.completed[group]
        if completed:
            targets = job.targets.select(branches_of(job.prompts, completed))
            prompts = [job.prompts[index] for index in completed]
            scores = score_members(job, prompts, targets, swept, self._reader)
            self.scores |= {row.question.id: row for row in scores}
            self._save(scores)
        self.heads_s += perf_counter() - started
        if self._deadline_s is None:
            return True
        return perf_counter() + SAFETY * max(swept.group_s) <= self._deadline_s


def score_members(
    job: ScoringJob, prompts: Sequence[Prompt], targets: TargetTable, swept: SweepResult, reader: TensorReader
) -> list[QuestionScores]:
    """Scores of some prompts from their readouts: every member's, averaged."""
    members = {}
    for number, name in enumerate(job.sweep.members):
        readouts = swept.readouts[name]
        if job.head in CLASSIFIER_HEADS:
            weight = _classifier_weight(job, number, reader)
            members[name] = score_classifier(job.head, prompts, targets, readouts, weight)
            continue
        logits = target_logits(
            vocabulary_projection(job.checkpoint),
            readouts,
            targets.rows,
            targets.token_ids,
            reader,
            torch.device(job.plan.devices[0]),
            normalized=job.targets.needs_normalization(job.head),
        )
        if not np.isfinite(logits).all():
            raise FloatingPointError("log-probabilities are not finite: lm_head holds NaN or inf")
        members[name] = score_tokens(job.head, prompts, targets, logits)
    return average_members(members)


def guess(question: Question) -> QuestionScores:
    """A question nobody scored: the longest option first, all options all but equally probable."""
    scores = np.empty(len(question.options))
    scores[list(longest_option_order(question))] = -1e-6 * np.arange(len(question.options))
    return QuestionScores(question=question, scores=scores, probabilities=option_probabilities(scores))


def _classifier_weight(job: ScoringJob, number: int, reader: TensorReader) -> torch.Tensor:
    adapters = job.sweep.adapters
    if adapters and (own := adapters[number].score) is not None:
        return own
    return reader.read(job.checkpoint.require_plain("score.weight"))
