"""From the readouts of decoder members to the scores of questions: each member's head, then the average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from strata.engine.adapters.lora import Adapter
from strata.engine.heads.head import Head
from strata.engine.jobs.describe import describe_not_finite
from strata.engine.members.ensemble import average_members
from strata.engine.members.readings import MemberReadings, PromptReadings
from strata.engine.model.open_model import OpenModel
from strata.engine.tree.targets import TargetTable
from strata.engine.types import Prompt, QuestionScores


@dataclass(frozen=True, kw_only=True, eq=False)
class MemberHeads:
    """What reads members: the head, and what it needs of each.

    Attributes:
        head: the same for all.
        model: whose members they are.
        adapters: one a member; None for the base model alone.
        labels: names of the labels of each member; empty for heads without.
        dtype: as the user gave it, for messages.
        normalized: whether token targets need the whole vocabulary.
        apart: each prompt is scored by itself, so that its scores do not depend on others to the last bit;
            their readouts lie one behind another.
    """

    head: Head
    model: OpenModel
    adapters: Sequence[Adapter | None]
    labels: Sequence[tuple[str, ...]]
    dtype: str
    normalized: bool
    apart: bool = False

    def score(
        self, prompts: Sequence[Prompt], targets: TargetTable, readouts: Mapping[str, torch.Tensor]
    ) -> list[QuestionScores]:
        """Scores of prompts, every member's averaged.

        Args:
            prompts: whose branches the targets are of.
            targets: where in the readouts.
            readouts: [S, D] by member.

        Raises:
            FloatingPointError: scores that are not finite, with the questions.
        """
        by_member: dict[str, list[QuestionScores]] = {}
        labels = self.labels or ((),) * len(self.adapters)
        for member, adapter, names in zip(self.model.members, self.adapters, labels, strict=True):
            readings = MemberReadings(
                checkpoint=self.model.checkpoint,
                adapter=adapter,
                readouts=readouts[member.name],
                targets=targets,
                normalized=self.normalized,
                reader=self.model.reader,
                devices=self.model.devices,
                label_names=names,
                row_starts=_first_rows(prompts, targets) if self.apart else None,
            )
            try:
                by_member[member.name] = self._score_member(prompts, targets, readings)
            except FloatingPointError as error:
                ids = [prompt.question.id for prompt in prompts]
                raise FloatingPointError(describe_not_finite(str(error), ids, self.dtype)) from error
        return average_members(by_member)

    def _score_member(
        self, prompts: Sequence[Prompt], targets: TargetTable, readings: MemberReadings
    ) -> list[QuestionScores]:
        if not self.apart:
            return self.head.score(prompts, targets, readings)
        scores = []
        for prompt, branches in zip(prompts, _branches_of(prompts), strict=True):
            own = PromptReadings(whole=readings, wanted=np.isin(targets.branches, branches))
            scores += self.head.score([prompt], targets.select(branches), own)
        return scores


def _branches_of(prompts: Sequence[Prompt]) -> list[np.ndarray]:
    ends = np.cumsum([len(prompt.branches) for prompt in prompts])
    return np.split(np.arange(ends[-1]), ends[:-1])


def _first_rows(prompts: Sequence[Prompt], targets: TargetTable) -> np.ndarray:
    rows = [targets.rows[np.isin(targets.branches, branches)] for branches in _branches_of(prompts)]
    return np.sort([own.min() for own in rows if len(own)])
