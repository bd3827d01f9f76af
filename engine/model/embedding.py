"""The rows of the input embedding that a job uses: read once a group, no others. Knows no devices."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from strata.engine.types import Branch, InputError, Prompt
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.tensor_reader import TensorReader


def embedding_bytes(checkpoint: Checkpoint, num_rows: int) -> int:
    """Bytes read for that many rows."""
    return num_rows * checkpoint.require_rows("embed_tokens.weight").row_bytes


def check_token_ids(checkpoint: Checkpoint, prompts: Iterable[Prompt]) -> None:
    """Refuses prompts with a token, computed or predicted, that the embedding has no row for.

    Raises:
        InputError: such a token; the tokenizer is not the model's.
    """
    largest = max(_largest_id(branch) for prompt in prompts for branch in prompt.branches)
    vocabulary = checkpoint.require_rows("embed_tokens.weight").shape[0]
    if largest >= vocabulary:
        raise InputError(
            f"{checkpoint.path}: the tokenizer makes token id {largest}; expected ids below {vocabulary}, "
            "the model's vocabulary"
        )


def _largest_id(branch: Branch) -> int:
    predicted = (target.token_id for target in branch.targets if target.token_id is not None)
    return max(int(branch.token_ids.max()), *predicted, 0)


def read_embedding(
    checkpoint: Checkpoint, token_ids: np.ndarray, reader: TensorReader
) -> tuple[torch.Tensor, np.ndarray]:
    """A table [U, D] of the token ids' rows (see StoredRows), and the table row of every token id [V]."""
    stored = checkpoint.require_rows("embed_tokens.weight")
    row_of_token = np.zeros(stored.shape[0], np.int64)
    row_of_token[token_ids] = np.arange(len(token_ids))
    return stored.read_ranges(reader, _consecutive(token_ids)), row_of_token


def _consecutive(ids: np.ndarray) -> list[tuple[int, int]]:
    """Ascending ids as half-open ranges."""
    if not len(ids):
        return []
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(ids, breaks)]
