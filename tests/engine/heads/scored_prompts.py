"""Owns small prompts to score by hand, and readings that say what a test tells them to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from strata.engine.tree.prefix_tree import build_prefix_tree
from strata.engine.tree.targets import TargetTable, build_target_table
from strata.engine.types import Branch, Prompt, Question, QuestionScores, Target


@dataclass
class GivenReadings:
    """`Readings` of a test: all targets' log-probabilities, or readouts [S, D] and a score weight."""

    targets: TargetTable
    logits: Sequence[float] = ()
    readouts: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    names: tuple[str, ...] = ()

    def log_probabilities(self) -> np.ndarray:
        """What the test says."""
        return np.array(self.logits)

    def hidden_states(self) -> torch.Tensor:
        """The readout of each target."""
        return self.readouts[torch.from_numpy(self.targets.rows)]

    def score_weight(self) -> torch.Tensor:
        """What the test says."""
        return self.weight

    def score_bias(self) -> torch.Tensor | None:
        """What the test says."""
        return self.bias

    def labels(self) -> tuple[str, ...]:
        """What the test says."""
        return self.names


def score_by(head, prompts: list[Prompt], **given) -> list[QuestionScores]:
    """The head's scores of prompts of which the readings say what is given."""
    targets = table_of(prompts)
    return head.score(prompts, targets, GivenReadings(targets, **given))


def branch(
    option: int, ids: list[int], targets: list[tuple[int, int | None]], label="Yes", order=()
) -> Branch:
    found = tuple(Target(position=position, token_id=token) for position, token in targets)
    token_ids = np.array(ids, np.int32)
    return Branch(option=option, order=order, label=label, token_ids=token_ids, text="", targets=found)


def prompt(branches: list[Branch], options: tuple[str, ...] = ("a", "b"), name: str = "q") -> Prompt:
    question = Question(id=name, prompt="?", options=options)
    return Prompt(question=question, branches=tuple(branches))


def table_of(prompts: list[Prompt]) -> TargetTable:
    return build_target_table(
        prompts, build_prefix_tree([branch.token_ids for each in prompts for branch in each.branches])
    )


def yes_no_branches(option: int, ids: list[int], yes=(7,), no=(8,)) -> list[Branch]:
    """The two branches of an option, with labels of one token or of several."""
    branches = []
    for label, tokens in (("Yes", yes), ("No", no)):
        targets = [(len(ids) + index, token) for index, token in enumerate(tokens)]
        branches.append(branch(option, [*ids, *tokens[:-1]], targets, label))
    return branches
