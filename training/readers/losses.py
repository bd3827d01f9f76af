"""Losses of the training tasks, from readouts. Knows no decoder and no optimizer.

Flow: readouts [S, D] -> logit or log-probability of every target [n] -> scores [O] a question -> loss. A
task's loss is a sum over units divided by their number in the whole batch, so that micro-batches add up:
    binary, contrast   sum over options of BCE(score, label); unit: an option
    choice, letters    cross-entropy of softmax(scores) and the labels; unit: a question
    classify           the same over a text's labels, each weighed; unit: the labels' weight (torch's mean)
    lm                 minus the log-probability of each token; unit: a token
Label smoothing e: labels become (1 - e) labels + e / O. Independent check: torch's losses (tests).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from strata.engine.heads.classifier import contrast_scores
from strata.engine.model.final_logits import FinalLogits
from strata.engine.tree.targets import TargetTable
from strata.training.tasks import Task
from strata.training.types import Example

LOGIT_ROWS = 512
"""Rows whose logits over the vocabulary are in memory at a time."""


def sum_loss(
    task: Task, scores: Sequence[torch.Tensor], examples: Sequence[Example], smoothing: float = 0.0
) -> torch.Tensor:
    """The summed loss of scores [O] (lm: [targets], log-probabilities), float32 or wider."""
    if task == "lm":
        return -torch.stack([log_probabilities.sum() for log_probabilities in scores]).sum()
    losses = []
    for scores_O, example in zip(scores, examples, strict=True):
        labels_O = torch.from_numpy(smooth_labels(example.labels, smoothing)).to(scores_O)
        if task in ("binary", "contrast"):
            losses.append(F.binary_cross_entropy_with_logits(scores_O, labels_O, reduction="sum"))
        else:
            if task == "classify":
                labels_O = labels_O * torch.from_numpy(example.class_weights).to(scores_O)
            losses.append(-(labels_O * scores_O.log_softmax(dim=0)).sum())
    return torch.stack(losses).sum()


def smooth_labels(labels: np.ndarray, smoothing: float) -> np.ndarray:
    """[O] probabilities, drawn towards the uniform ones."""
    return (1 - smoothing) * labels + smoothing / len(labels)


def classifier_scores(
    task: Task,
    readouts: torch.Tensor,
    targets: TargetTable,
    examples: Sequence[Example],
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Scores [O] of every example: readouts [S, D], weight [1, D] (contrast: [1, 2 D]), bias [1]; float32."""
    rows = torch.from_numpy(targets.rows).to(readouts.device)
    per_example = readouts[rows].float().split([len(example.prompt.branches) for example in examples])
    wide, added = weight.float(), 0.0 if bias is None else bias.float()
    if task == "contrast":
        return [contrast_scores(r_OD, wide[0]) + added for r_OD in per_example]
    return [r_OD @ wide[0] + added for r_OD in per_example]


def label_scores(
    readouts: torch.Tensor,
    targets: TargetTable,
    examples: Sequence[Example],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: Mapping[str, int],
) -> list[torch.Tensor]:
    """Logits [O] of every text's own labels: readouts [S, D], weight [L, D], bias [L]; in float32.

    `rows` tells which row of the weight a label is.
    """
    places = torch.from_numpy(targets.rows).to(readouts.device)
    logits_nL = F.linear(readouts[places].float(), weight.float(), None if bias is None else bias.float())
    return [
        logits_L[[rows[name] for name in example.prompt.question.options]]
        for logits_L, example in zip(logits_nL, examples, strict=True)
    ]


def token_log_probabilities(
    readouts: torch.Tensor, targets: TargetTable, lm_head: torch.nn.Module, final: FinalLogits
) -> torch.Tensor:
    """Log-probability [n] of every target, float32, over the whole vocabulary.

    Peak memory: the logits of LOGIT_ROWS rows; backward computes them again.
    """
    rows = torch.from_numpy(targets.rows).to(readouts.device)
    token_ids = torch.from_numpy(targets.token_ids).to(readouts.device)
    parts = []
    for first in range(0, len(rows), LOGIT_ROWS):
        part = slice(first, first + LOGIT_ROWS)
        arguments = (readouts[rows[part]], token_ids[part], lm_head, final)
        parts.append(torch.utils.checkpoint.checkpoint(_log_probabilities, *arguments, use_reentrant=False))
    return torch.cat(parts)


def _log_probabilities(
    readouts: torch.Tensor, token_ids: torch.Tensor, lm_head: torch.nn.Module, final: FinalLogits
) -> torch.Tensor:
    return -F.cross_entropy(final(lm_head(readouts).float()), token_ids, reduction="none")


def group_targets(
    task: Task, log_probabilities: torch.Tensor, targets: TargetTable, examples: Sequence[Example]
) -> list[torch.Tensor]:
    """Scores of every example from the log-probabilities [n] of all targets.

    letters: [O], the sum over each label's tokens; the prompt shows one order. lm: [targets of the example].
    """
    counts = np.bincount(targets.branches, minlength=targets.num_branches)
    by_branch = log_probabilities.split(counts.tolist())
    grouped, first = [], 0
    for example in examples:
        parts = by_branch[first : first + len(example.prompt.branches)]
        first += len(parts)
        grouped.append(torch.cat(parts) if task == "lm" else torch.stack([part.sum() for part in parts]))
    return grouped
