"""Heads binary and contrast: a trained matrix on the readout of an option's last token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from strata.engine.heads.probabilities import _plain
from strata.engine.tree.targets import TargetTable
from strata.engine.types import Prompt, QuestionScores


def score_classifier(
    head: str, prompts: Sequence[Prompt], table: TargetTable, readouts: torch.Tensor, weight: torch.Tensor
) -> list[QuestionScores]:
    """Scores of a classifier head: readouts [S, D], weight [1 or 2, D], or [1, 2 D] for contrast."""
    r_BD = readouts[torch.from_numpy(table.rows)].double()
    w = weight.double()
    scored, first = [], 0
    for prompt in prompts:
        r_OD = r_BD[first : first + len(prompt.branches)]
        first += len(prompt.branches)
        scores = contrast_scores(r_OD, w[0]) if head == "contrast" else binary_scores(r_OD, w)
        scored.append(_plain(prompt, scores.numpy()))
    return scored


def binary_scores(r_OD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[O] logit of the one label, or of label 1 minus label 0."""
    logits = r_OD @ weight.T
    return logits[:, 0] if weight.shape[0] == 1 else logits[:, 1] - logits[:, 0]


def contrast_scores(r_OD: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[O] logits that also see the mean readout of the other options (seeds: first-place head "B")."""
    width = r_OD.shape[1]
    others = (r_OD.sum(dim=0) - r_OD) / max(1, len(r_OD) - 1)
    return r_OD @ weight[:width] + others @ weight[width:]
