"""What heads read of a member: its readouts, the checkpoint's vocabulary projection, and the score weight.

Implements `Readings` and `ReadingCosts` of heads/head.py; the two agree to the byte. Knows no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from strata.engine.adapters.adapter_config import CONFIG_NAME
from strata.engine.adapters.lora import Adapter
from strata.engine.model.vocabulary import TargetLogits, TargetTokens, target_logits, vocabulary_projection
from strata.engine.tree.targets import TargetTable
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.checkpoint_folder import CONFIG_FILE
from strata.engine.weights.tensor_reader import TensorReader

SCORE_WEIGHT = "score.weight"
SCORE_BIAS = "score.bias"
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "RewardModel")
"""How architectures with a classification head are called at their end."""


def score_shape(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> tuple[int, ...] | None:
    """Shape of the score weight that members have: the adapters' own, else the checkpoint's, if any."""
    if adapters and adapters[0].score is not None:
        return tuple(adapters[0].score.shape)
    source = checkpoint.weights.get(SCORE_WEIGHT)
    return source.parts[0][0].shape if source else None


def declared_head(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> str | None:
    """The file that says a classification head was trained, an adapter's before the model's."""
    for adapter in adapters:
        if adapter.declares_head:
            return str(adapter.path / CONFIG_NAME)
    for name in getattr(checkpoint.config, "architectures", None) or ():
        if str(name).endswith(CLASSIFIERS):
            return f"{checkpoint.path / CONFIG_FILE} ({name})"
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class MemberReadings:
    """`Readings` of one member.

    Attributes:
        checkpoint: the base model.
        adapter: the member's adapter; None for the base model itself.
        readouts: [S, D] on the host, what a sweep left of the member.
        targets: which of the readouts are asked for, and for which tokens.
        normalized: whether the head wants log-probabilities, not logits.
        reader: counts the bytes read.
        devices: where the vocabulary projection is multiplied.
        label_names: what the rows of the score weight are called; empty for heads that do not ask.
        row_starts: readout rows at which products of the vocabulary projection begin anew; None for none.
    """

    checkpoint: Checkpoint
    adapter: Adapter | None
    readouts: torch.Tensor
    targets: TargetTable
    normalized: bool
    reader: TensorReader
    devices: Sequence[torch.device]
    label_names: tuple[str, ...] = ()
    row_starts: np.ndarray | None = None

    def log_probabilities(self) -> np.ndarray:
        """[n] float64, streaming the projection in blocks.

        Raises:
            InputError: the checkpoint has no vocabulary projection.
            FloatingPointError: one is not finite.
        """
        if not np.isfinite(self._logits.values).all():
            raise FloatingPointError("log-probabilities are not finite: lm_head holds NaN or inf")
        return self._logits.values

    def are_most_probable(self) -> np.ndarray:
        """[n] bool, from the same pass over the projection."""
        assert self._logits.are_most_probable is not None, "logits alone do not tell the most probable token"
        return self._logits.are_most_probable

    @cached_property
    def _logits(self) -> TargetLogits:
        """One read of the projection, whatever is asked of it."""
        return target_logits(
            vocabulary_projection(self.checkpoint),
            self.readouts,
            TargetTokens(
                rows=self.targets.rows,
                token_ids=self.targets.token_ids,
                normalized=self.normalized,
                row_starts=self.row_starts,
            ),
            self.reader,
            self.devices,
        )

    def hidden_states(self) -> torch.Tensor:
        """[n, D], a copy."""
        return self.readouts[torch.from_numpy(self.targets.rows)]

    def score_weight(self) -> torch.Tensor:
        """The adapter's, else read from the checkpoint."""
        if self.adapter is not None and self.adapter.score is not None:
            return self.adapter.score
        return self.checkpoint.require_rows(SCORE_WEIGHT).read(self.reader)

    def score_bias(self) -> torch.Tensor | None:
        """The bias that goes with `score_weight`: an adapter's classifier replaces the checkpoint's whole."""
        if self.adapter is not None and self.adapter.score is not None:
            return self.adapter.score_bias
        if SCORE_BIAS not in self.checkpoint.weights:
            return None
        return self.checkpoint.require_rows(SCORE_BIAS).read(self.reader)

    @cached_property
    def trained_head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`score_weight` and `score_bias`, read once for several prompts."""
        return self.score_weight(), self.score_bias()

    def labels(self) -> tuple[str, ...]:
        """The names that the member was opened with."""
        return self.label_names


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptReadings:
    """`Readings` of one prompt's targets among those of a member; `wanted` [n] bool says which they are."""

    whole: MemberReadings
    wanted: np.ndarray

    def log_probabilities(self) -> np.ndarray:
        """[n of the prompt] float64; raises as the member's do."""
        return self.whole.log_probabilities()[self.wanted]

    def are_most_probable(self) -> np.ndarray:
        """[n of the prompt] bool."""
        return self.whole.are_most_probable()[self.wanted]

    def hidden_states(self) -> torch.Tensor:
        """[n of the prompt, D], a copy."""
        return self.whole.readouts[torch.from_numpy(self.whole.targets.rows[self.wanted])]

    def score_weight(self) -> torch.Tensor:
        """The member's, read once."""
        return self.whole.trained_head[0]

    def score_bias(self) -> torch.Tensor | None:
        """The member's, read once."""
        return self.whole.trained_head[1]

    def labels(self) -> tuple[str, ...]:
        """The member's."""
        return self.whole.labels()


@dataclass(frozen=True, kw_only=True, eq=False)
class MemberCosts:
    """`ReadingCosts` of one member: the base model (`adapter` None) or one with an adapter."""

    checkpoint: Checkpoint
    adapter: Adapter | None

    def vocabulary_bytes(self, token_ids: np.ndarray, *, normalized: bool) -> int:
        """The whole projection, or the rows of these tokens.

        Raises:
            InputError: the checkpoint has no vocabulary projection.
        """
        return vocabulary_projection(self.checkpoint).bytes_needed(token_ids, normalized=normalized)

    def score_weight_bytes(self) -> int:
        """The checkpoint's weight and bias; 0 where the adapter brings its own."""
        if self.adapter is not None and self.adapter.score is not None:
            return 0
        bias = self.checkpoint.weights.get(SCORE_BIAS)
        return self.checkpoint.require(SCORE_WEIGHT).num_bytes + (0 if bias is None else bias.num_bytes)
