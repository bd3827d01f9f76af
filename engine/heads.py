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
from dataclasses import dataclass, replace

import numpy as np
import torch

from strata.engine.checkpoint import Checkpoint
from strata.engine.debias import group_by_order, log_softmax, option_probabilities, unrotate_and_average
from strata.engine.prefix_tree import PrefixTree
from strata.engine.types import InputError, Prompt, QuestionScores

TOKEN_HEADS = ("yes-no", "letters", "loglik")
CLASSIFIER_HEADS = ("binary", "contrast")
EMPTY_OPTION_PENALTY = 100.0
"""Nats by which an empty option's log-likelihood lies below the least likely other option's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetTable:
    """Every target of a job, branch after branch.

    Attributes:
        branches: [n] global branch number of each target.
        rows: [n] readout row of each target.
        token_ids: [n] token ids, -1 where the readout goes to a classifier.
        num_branches: branches of the job.
        scored: [S] ascending stream indexes, one a readout row.
    """

    branches: np.ndarray
    rows: np.ndarray
    token_ids: np.ndarray
    num_branches: int
    scored: np.ndarray

    def select(self, branches: np.ndarray) -> TargetTable:
        """The targets of some branches, given in ascending order and renumbered from 0; readout rows stay."""
        wanted = np.isin(self.branches, branches)
        return replace(
            self,
            branches=np.searchsorted(branches, self.branches[wanted]),
            rows=self.rows[wanted],
            token_ids=self.token_ids[wanted],
            num_branches=len(branches),
        )

    def needs_normalization(self, head: str) -> bool:
        """False for yes-no when yes and no are one token each at one readout: their normalizers cancel."""
        if head != "yes-no":
            return True
        counts = np.bincount(self.branches, minlength=self.num_branches)
        if (counts != 1).any():
            return True
        pairs = self.rows.reshape(-1, 2)
        return bool((pairs[:, 0] != pairs[:, 1]).any())


def build_target_table(prompts: Sequence[Prompt], tree: PrefixTree) -> TargetTable:
    """Finds the readout of every target of every branch; branches are the tree's sequences, in order."""
    branches, streams, token_ids = [], [], []
    all_branches = [branch for prompt in prompts for branch in prompt.branches]
    for number, branch in enumerate(all_branches):
        for target in branch.targets:
            branches.append(number)
            streams.append(tree.locate(number, target.readout_position))
            token_ids.append(-1 if target.token_id is None else target.token_id)
    scored, rows = np.unique(np.asarray(streams, np.int64), return_inverse=True)
    return TargetTable(
        branches=np.asarray(branches, np.int64),
        rows=rows.astype(np.int64),
        token_ids=np.asarray(token_ids, np.int64),
        num_branches=len(all_branches),
        scored=scored,
    )


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


def _rank_last(scores: np.ndarray, has_targets: np.ndarray) -> np.ndarray:
    """The scores, with options of no tokens (their sum, 0, would win) below all others."""
    if has_targets.all() or not has_targets.any():
        return scores
    return np.where(has_targets, scores, scores[has_targets].min() - EMPTY_OPTION_PENALTY)


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


def average_members(members: dict[str, list[QuestionScores]]) -> list[QuestionScores]:
    """One result a question from several members: their mean probabilities; each member's scores are kept."""
    if len(members) == 1:
        return next(iter(members.values()))
    averaged = []
    for rows in zip(*members.values(), strict=True):
        log_probabilities = np.stack([log_softmax(row.scores) for row in rows])
        scores = np.logaddexp.reduce(log_probabilities, axis=0) - np.log(len(rows))
        by_member = {name: row.scores for name, row in zip(members, rows, strict=True)}
        averaged.append(
            QuestionScores(
                question=rows[0].question,
                scores=scores,
                probabilities=option_probabilities(scores),
                member_scores=by_member,
            )
        )
    return averaged


def _plain(prompt: Prompt, scores: np.ndarray) -> QuestionScores:
    if not np.isfinite(scores).all():
        raise FloatingPointError("scores are not finite: the head's weights hold NaN or inf")
    return QuestionScores(question=prompt.question, scores=scores, probabilities=option_probabilities(scores))
