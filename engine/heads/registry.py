"""Heads: from readouts at the scored positions to one score an option.

A head sees, for every target of every branch, its readout row and token id, and returns for every question
[O] scores. Formulas (r: readout, lp: log-probability, i: option):
    yes-no    lp(yes tokens) - lp(no tokens)
    letters   lp(letter's tokens), un-rotated and averaged over the orders shown
    loglik    sum of lp over the option's tokens; also that divided by the option's characters
    binary    w . r_i (two labels: w_1 . r_i - w_0 . r_i)
    contrast  w[:D] . r_i + w[D:] . mean over j != i of r_j
Knows nothing of how readouts came to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from strata.engine.heads.debias import group_by_order, unrotate_and_average
from strata.engine.heads.loglik import _rank_last
from strata.engine.heads.probabilities import _plain
from strata.engine.tree.targets import TargetTable
from strata.engine.types import InputError, Prompt, QuestionScores
from strata.engine.weights.checkpoint import Checkpoint

TOKEN_HEADS = ("yes-no", "letters", "loglik")
CLASSIFIER_HEADS = ("binary", "contrast")


def choose_head(setting: str, checkpoint: Checkpoint, adapter_score: torch.Tensor | None) -> str:
    """Resolves `--head auto` by what the checkpoint or its adapter holds, and checks a given head against it.

    Raises:
        InputError: a classifier head without a score, or a score of a width that fits no head.
    """
    shape = _score_shape(checkpoint, adapter_score)
    width = checkpoint.config.hidden_size
    if setting == "auto":
        if shape is None:
            return "yes-no"
        setting = "contrast" if shape[1] == 2 * width else "binary"
    if setting in CLASSIFIER_HEADS:
        expected = width if setting == "binary" else 2 * width
        if shape is None:
            raise InputError(f"--head {setting}: {checkpoint.path} and its adapters hold no score.weight")
        if shape[1] != expected or shape[0] not in ((1, 2) if setting == "binary" else (1,)):
            raise InputError(
                f"--head {setting}: score.weight has shape {list(shape)}; expected [1, {expected}]"
                + (f" or [2, {expected}]" if setting == "binary" else "")
            )
    return setting


def _score_shape(checkpoint: Checkpoint, adapter_score: torch.Tensor | None) -> tuple[int, ...] | None:
    if adapter_score is not None:
        return tuple(adapter_score.shape)
    source = checkpoint.weights.get("score.weight")
    return source.parts[0][0].shape if source else None


def score_tokens(
    head: str, prompts: Sequence[Prompt], table: TargetTable, logits: np.ndarray
) -> list[QuestionScores]:
    """Scores of a head on label or option tokens, from the [n] log-probabilities of all targets."""
    branch_scores = np.bincount(table.branches, weights=logits, minlength=table.num_branches)
    scored, first = [], 0
    for prompt in prompts:
        part = branch_scores[first : first + len(prompt.branches)]
        first += len(prompt.branches)
        scored.append(_score_question(head, prompt, part))
    return scored


def _score_question(head: str, prompt: Prompt, branch_scores: np.ndarray) -> QuestionScores:
    if head == "letters":
        by_order = group_by_order(prompt.branches, branch_scores.tolist())
        if len(by_order) > 1:
            scores, probabilities = unrotate_and_average(by_order)
            return QuestionScores(question=prompt.question, scores=scores, probabilities=probabilities)
        return _plain(prompt, next(iter(by_order.values())))
    if head == "yes-no":
        return _plain(prompt, branch_scores[0::2] - branch_scores[1::2])
    assert head == "loglik"
    lengths = np.array([max(1, len(option)) for option in prompt.question.options])
    has_targets = np.array([bool(branch.targets) for branch in prompt.branches])
    per_char = _rank_last(branch_scores / lengths, has_targets)
    return replace(
        _plain(prompt, _rank_last(branch_scores, has_targets)), member_scores={"loglik_per_char": per_char}
    )
