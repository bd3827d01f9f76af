"""What of a reranker its folder decides together with its tokenizer, or torch. Knows no pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from strata.engine.model_files.config_file import read_config_json
from strata.engine.types import InputError
from strata.scripts.bridges.cross_encoder_folder import RerankerFolder

YES_NO = ("yes", "no")
"""Words whose tokens a causal model is read at, unless its folder names others."""

Activation = Callable[[torch.Tensor], torch.Tensor]

logger = logging.getLogger(__name__)


def find_activation(folder: RerankerFolder) -> Activation:
    """What a folder says is applied to logits: a module of torch.nn, else sigmoid or nothing."""
    default = torch.nn.Sigmoid() if folder.num_labels == 1 else torch.nn.Identity()
    if folder.activation is None:
        return default
    found = getattr(torch.nn, folder.activation.rpartition(".")[2], None)
    if folder.activation.startswith("torch.nn.") and isinstance(found, type):
        return found()
    logger.warning("activation %s is no module of torch.nn: %s is used", folder.activation, default)
    return default


def find_tokens(folder: RerankerFolder, tokenizer: Any) -> tuple[int, int]:
    """The tokens for yes and no.

    Raises:
        InputError: the folder names one token alone, or the tokenizer has no tokens of these words.
    """
    if folder.logit_tokens is not None:
        yes, no = folder.logit_tokens.true_token_id, folder.logit_tokens.false_token_id
        if no is None:
            raise InputError(f"{folder.path}: LogitScore without false_token_id; expected both tokens")
        return yes, no
    found = tokenizer.convert_tokens_to_ids(list(YES_NO))
    for word, token in zip(YES_NO, found, strict=True):
        if token is None or token == tokenizer.unk_token_id:
            raise InputError(
                f"{folder.path}: the tokenizer has no token {word!r}; expected a saved LogitScore"
            )
    return found[0], found[1]


def longest_pair(folder: RerankerFolder, of_tokenizer: int) -> int:
    """Most tokens of a pair: what the folder says, else the tokenizer's bound or the model's positions."""
    if folder.max_seq_length is not None:
        return folder.max_seq_length
    positions = read_config_json(folder.path).get("max_position_embeddings", -1)
    return of_tokenizer if positions == -1 else min(of_tokenizer, positions)
