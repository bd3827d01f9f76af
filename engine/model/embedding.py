"""The rows of the input embedding that a job uses: read once a group, no others. Knows no devices."""

from __future__ import annotations

import numpy as np
import torch

from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.tensor_reader import TensorReader


def embedding_bytes(checkpoint: Checkpoint, num_rows: int) -> int:
    """Bytes read for that many rows."""
    stored = checkpoint.require_plain("embed_tokens.weight")
    return num_rows * (stored.num_bytes // stored.shape[0])


def read_embedding(
    checkpoint: Checkpoint, token_ids: np.ndarray, reader: TensorReader
) -> tuple[torch.Tensor, np.ndarray]:
    """A table [U, D] of the token ids' rows in the stored dtype, and the table row of every token id [V]."""
    stored = checkpoint.require_plain("embed_tokens.weight")
    row_of_token = np.zeros(stored.shape[0], np.int64)
    row_of_token[token_ids] = np.arange(len(token_ids))
    table = torch.empty(len(token_ids), *stored.shape[1:], dtype=stored.floating_dtype)
    row_bytes = stored.num_bytes // stored.shape[0]
    raw, filled = table.view(torch.uint8).view(-1), 0
    for first, last in _consecutive(token_ids):
        size = (last - first) * row_bytes
        reader.read_into(stored, raw[filled : filled + size], first * row_bytes)
        filled += size
    return table, row_of_token


def _consecutive(ids: np.ndarray) -> list[tuple[int, int]]:
    """Ascending ids as half-open ranges."""
    if not len(ids):
        return []
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(ids, breaks)]
