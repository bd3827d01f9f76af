"""Log-probabilities of target tokens from readouts, the vocabulary projection streamed in blocks of rows.

Data flow: readouts [S, D] and targets (readout row, token id) [n] -> for each block of the projection [B, D],
read from disk: logits [S, B] in float32 -> running log-sum-exp [S] and the targets' logits [n] ->
log-probabilities [n].
Peak memory: one block of rows and its logits on each device, whatever V and S are. Without normalization only
the target tokens' rows are read, and the result is logits. Several devices take turns with the readouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import linear

from strata.engine.model.final_logits import FinalLogits, final_logits
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.stored_rows import StoredRows
from strata.engine.weights.tensor_reader import TensorReader

BLOCK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Of the projection, in float32. For every block all readouts go to the device again, which takes longer than
products with a small one."""
READOUT_ROWS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class VocabularyProjection:
    """The stored output embedding [V, D] of a checkpoint, its bias [V] if any, and what follows them."""

    stored: StoredRows
    bias: StoredRows | None
    final: FinalLogits = field(default_factory=FinalLogits)

    def bytes_needed(self, token_ids: np.ndarray, *, normalized: bool) -> int:
        """Bytes read for targets with these token ids."""
        bias_bytes = self.bias.num_bytes if self.bias else 0
        if normalized:
            return self.stored.num_bytes + bias_bytes
        return len(np.unique(token_ids)) * self.stored.row_bytes + bias_bytes


def vocabulary_projection(checkpoint: Checkpoint) -> VocabularyProjection:
    """The projection of a causal language model.

    Raises:
        InputError: the checkpoint has none.
    """
    name = checkpoint.output_embedding
    if name is None:
        raise InputError(
            f"{checkpoint.path}: no lm_head.weight; heads on label tokens need a causal language model"
        )
    has_bias = "lm_head.bias" in checkpoint.weights
    return VocabularyProjection(
        stored=checkpoint.require_rows(name),
        bias=checkpoint.require_rows("lm_head.bias") if has_bias else None,
        final=final_logits(checkpoint.config),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetTokens:
    """Tokens whose logits are wanted.

    Attributes:
        rows: [n] readout row of each.
        token_ids: [n] the tokens.
        normalized: log-probabilities are wanted: logits minus the log-sum-exp over the whole vocabulary.
        row_starts: ascending readout rows at which products begin anew, so that those of one question do not
            depend on others' rows; None to multiply all rows together.
    """

    rows: np.ndarray
    token_ids: np.ndarray
    normalized: bool
    row_starts: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetLogits:
    """What the projection says of target tokens.

    Attributes:
        values: [n] float64, log-probabilities, or logits where that was wanted.
        are_most_probable: [n] bool, whether no token of the vocabulary is more probable there, of equals the
            first; None beside logits, for which the vocabulary is not read.
    """

    values: np.ndarray
    are_most_probable: np.ndarray | None


def target_logits(
    projection: VocabularyProjection,
    readouts: torch.Tensor,
    targets: TargetTokens,
    reader: TensorReader,
    devices: Sequence[torch.device],
) -> TargetLogits:
    """Log-probabilities (or logits, where the targets say so) of target tokens.

    Args:
        projection: where the projection is stored.
        readouts: [S, D] on the host.
        targets: which tokens, after which readouts.
        reader: counts bytes.
        devices: where the products are computed, in float32; all of one kind, each once or more.
    """
    token_ids, normalized = targets.token_ids, targets.normalized
    used, rows = np.unique(targets.rows, return_inverse=True)
    readouts = readouts[torch.from_numpy(used)]
    bias = projection.bias.read(reader).float() if projection.bias else None
    parts = _parts_of_rows(used, targets.row_starts)
    picked = np.zeros(len(token_ids))
    whole = _WholeVocabulary(len(readouts))
    unique = list(dict.fromkeys(devices))

    def multiply(ids: np.ndarray, weight_VD: torch.Tensor, turn: int) -> None:
        """Every so-manieth part of the readouts with a block, on one device."""
        device = unique[turn]
        weight = weight_VD.to(device, torch.float32)
        block_bias = None if bias is None else bias[torch.from_numpy(ids)].to(device)
        wanted = np.flatnonzero(np.isin(token_ids, ids))
        for part in parts[turn :: len(unique)]:
            # Copied: products depend on how their operands are aligned.
            rows_SD = readouts[part].to(device, torch.float32, copy=True)
            logits = projection.final(linear(rows_SD, weight, block_bias))
            if normalized:
                whole.see(part, logits, int(ids[0]))
            here = wanted[(rows[wanted] >= part.start) & (rows[wanted] < part.stop)]
            if len(here):
                columns = torch.from_numpy(np.searchsorted(ids, token_ids[here])).to(device)
                places = torch.from_numpy(rows[here] - part.start).to(device)
                picked[here] = logits[places, columns].cpu().double().numpy()

    block_bytes = BLOCK_BYTES[unique[0].type]
    blocks = _blocks(projection.stored, np.unique(token_ids), reader, block_bytes, normalized=normalized)
    if len(unique) == 1:
        for ids, weight_VD in blocks:
            multiply(ids, weight_VD, 0)
    else:
        with ThreadPoolExecutor(len(unique), "vocabulary") as pool:
            for block in blocks:
                list(pool.map(partial(multiply, *block), range(len(unique))))
    if not normalized:
        return TargetLogits(values=picked, are_most_probable=None)
    return TargetLogits(
        values=picked - whole.log_sum.double().numpy()[rows],
        are_most_probable=whole.best_id.numpy()[rows] == token_ids,
    )


def _parts_of_rows(used: np.ndarray, row_starts: np.ndarray | None) -> list[slice]:
    """Slices of the ascending rows [U] in use, each multiplied by itself."""
    cuts = [] if row_starts is None else np.searchsorted(used, row_starts).tolist()
    return [
        slice(start, min(start + READOUT_ROWS, last))
        for first, last in pairwise(sorted({0, *cuts, len(used)}))
        for start in range(first, last, READOUT_ROWS)
    ]


class _WholeVocabulary:
    """Over the blocks of the vocabulary seen so far: log-sum-exp [S] and the most probable token [S]."""

    def __init__(self, num_rows: int) -> None:
        self.log_sum = torch.full((num_rows,), float("-inf"))
        self.best_id = torch.zeros(num_rows, dtype=torch.int64)
        self._best = torch.full((num_rows,), float("-inf"))

    def see(self, part: slice, logits: torch.Tensor, first_id: int) -> None:
        """Takes in the logits [s, B] of some rows and of B tokens from `first_id` on."""
        best = logits.amax(dim=1)
        # torch's log_softmax is fused, its logsumexp is not.
        log_sum = best - logits.log_softmax(dim=1).amax(dim=1)
        self.log_sum[part] = torch.logaddexp(self.log_sum[part], log_sum.cpu())
        # The place takes far longer to find than the value.
        better = (best.cpu() > self._best[part]).nonzero()[:, 0]
        rows = better + part.start
        self._best[rows] = best.cpu()[better]
        self.best_id[rows] = logits[better.to(logits.device)].max(dim=1).indices.cpu() + first_id


def _blocks(
    stored: StoredRows, token_ids: np.ndarray, reader: TensorReader, block_bytes: int, *, normalized: bool
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Ascending token ids and their rows: the whole vocabulary in blocks, or the given ids alone."""
    if not normalized:
        ranges = [(int(token_id), int(token_id) + 1) for token_id in token_ids]
        yield token_ids, stored.read_ranges(reader, ranges)
        return
    num_rows = stored.shape[0]
    size = max(1, block_bytes // (4 * stored.shape[1]))
    for first in range(0, num_rows, size):
        last = min(first + size, num_rows)
        yield np.arange(first, last), stored.read_range(reader, first, last)
