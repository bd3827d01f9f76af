"""What of a reranker its folder decides together with its tokenizer, or torch. Knows no pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import torch

from strata.engine.json_files import shown
from strata.engine.model_files.config_file import read_config_json
from strata.engine.types import InputError
from strata.scripts.bridges.cross_encoder_folder import RerankerFolder
from strata.scripts.bridges.pair_tokens import is_text

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


def check_count(name: str, count: object, *, least: int = 1) -> None:
    """Raises InputError where an argument is no whole number, or too small."""
    if isinstance(count, bool) or not isinstance(count, Integral) or count < least:
        raise InputError(f"{name}={shown(count)}: expected at least {least}, a whole number")


def check_prompts(prompts: object, default_name: object) -> None:
    """Raises InputError where prompts are no texts by name, or the default one is none of them."""
    is_named = isinstance(prompts, Mapping) and all(isinstance(name, str) for name in prompts)
    if not isinstance(prompts, Mapping) or not is_named or not all(map(is_text, prompts.values())):
        raise InputError(f"prompts={shown(prompts)}: expected texts by name")
    if default_name is not None and default_name not in prompts:
        known = ", ".join(map(repr, prompts)) or "none"
        raise InputError(f"default_prompt_name={shown(default_name)}: expected one of the prompts ({known})")


def apply_activation(activation: Activation, logits: torch.Tensor) -> torch.Tensor:
    """What an activation makes of logits [n, L]: as many rows.

    Raises:
        InputError: it cannot be called, or gives something else.
    """
    if not callable(activation):
        raise InputError(f"activation_fn={shown(activation)}: expected a function of tensors")
    scores = activation(logits)
    if not isinstance(scores, torch.Tensor) or scores.shape[:1] != logits.shape[:1]:
        found = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise InputError(f"activation_fn: gave {found} for {len(logits)} pairs; expected a tensor of as many")
    return scores
