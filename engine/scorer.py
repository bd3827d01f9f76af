"""After every group: heads on the questions it completes, partial results on disk, and a look at the clock.

Flow: readouts of a finished group -> scores of the questions whose last readout it holds -> partial.jsonl.
Questions that no group reached before the deadline get the longest option first. Knows nothing of how
readouts are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from strata.engine.config import ScoreConfig
from strata.engine.deadline import SAFETY
from strata.engine.heads.classifier import score_classifier
from strata.engine.heads.registry import CLASSIFIER_HEADS, score_tokens
from strata.engine.machine.machine import Budgets
from strata.engine.machine.rates import MachineRates
from strata.engine.members.ensemble import average_members
from strata.engine.model.vocabulary import TargetTokens, target_logits, vocabulary_projection
from strata.engine.plan.sweep_job import SweepJob
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.sweep.sweep import SweepResult
from strata.engine.tree.prefix_tree import PrefixTree
from strata.engine.tree.targets import TargetTable, branches_of
from strata.engine.types import Prompt, Question, QuestionScores
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.tensor_reader import TensorReader


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
            TargetTokens(
                rows=targets.rows,
                token_ids=targets.token_ids,
                normalized=job.targets.needs_normalization(job.head),
            ),
            reader,
            torch.device(job.plan.devices[0]),
        )
        if not np.isfinite(logits).all():
            raise FloatingPointError("log-probabilities are not finite: lm_head holds NaN or inf")
        members[name] = score_tokens(job.head, prompts, targets, logits)
    return average_members(members)


def _classifier_weight(job: ScoringJob, number: int, reader: TensorReader) -> torch.Tensor:
    adapters = job.sweep.adapters
    if adapters and (own := adapters[number].score) is not None:
        return own
    return reader.read(job.checkpoint.require_plain("score.weight"))


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoringJob:
    """A checked and planned job.

    `prompts` are those still to score, `all_prompts` with those that an interrupted run has `done`;
    `completed` lists for each group the indexes of the prompts whose last readout it holds.
    """

    config: ScoreConfig
    head: str
    template_name: str
    questions: list[Question]
    prompts: list[Prompt]
    all_prompts: list[Prompt]
    targets: TargetTable
    sweep: SweepJob
    completed: tuple[tuple[int, ...], ...]
    rates: MachineRates
    budgets: Budgets
    fingerprint: str
    done: dict[str, QuestionScores]

    @property
    def tree(self) -> PrefixTree:
        """All branches of all questions."""
        return self.sweep.tree

    @property
    def plan(self) -> SweepPlan:
        """How the job is swept."""
        return self.sweep.plan

    @property
    def checkpoint(self) -> Checkpoint:
        """The model."""
        return self.sweep.checkpoint

    @property
    def tokens_per_option_run(self) -> int:
        """Tokens that scoring every distinct path alone would compute."""
        return sum(
            sum(
                map(
                    len, {branch.token_ids.tobytes(): branch.token_ids for branch in prompt.branches}.values()
                )
            )
            for prompt in self.prompts
        )
