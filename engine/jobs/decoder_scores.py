"""From the readouts of decoder members to the scores of questions: each member's head, then the average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from strata.engine.adapters.lora import Adapter
from strata.engine.heads.head import Head
from strata.engine.jobs.describe import describe_not_finite
from strata.engine.members.ensemble import average_members
from strata.engine.members.readings import MemberReadings
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
    """

    head: Head
    model: OpenModel
    adapters: Sequence[Adapter | None]
    labels: Sequence[tuple[str, ...]]
    dtype: str
    normalized: bool

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
                device=self.model.devices[0],
                label_names=names,
            )
            try:
                by_member[member.name] = self.head.score(prompts, targets, readings)
            except FloatingPointError as error:
                ids = [prompt.question.id for prompt in prompts]
                raise FloatingPointError(describe_not_finite(str(error), ids, self.dtype)) from error
        return average_members(by_member)
