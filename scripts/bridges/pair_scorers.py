"""Logits of pairs that are tokens already: by the engine for decoders, by transformers for encoders.

Legend: n pairs, L labels (1 for a causal model: the logit of yes minus that of no).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from strata.engine.deadline import Deadline
from strata.engine.encoders.encoder import stored_dtype
from strata.engine.jobs.job import Session
from strata.engine.machine.devices import resolve_devices, resolve_dtype
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.model.embedding import check_token_ids
from strata.engine.model_files.library_errors import one_line
from strata.engine.model_files.opening import OPENING
from strata.engine.prompts.texts import pooled_position
from strata.engine.scorer import Scorer
from strata.engine.types import Branch, InputError, Prompt, Question, Target
from strata.engine.weights.checkpoint_folder import read_config
from strata.scripts.bridges.cross_encoder_folder import RerankerFolder

EncodedPairs = Sequence[dict[str, list[int]]]
Scored = Iterator[dict[int, torch.Tensor]]
"""Logits [L] float32 by the pair's place, as they come."""


class PairScorer(Protocol):
    """A reranker, opened."""

    def logits(self, pairs: EncodedPairs, batch_size: int) -> Scored:
        """Logits of all pairs; `batch_size` is for models that are computed in batches."""
        ...

    def close(self) -> None:
        """Gives memory and files back."""
        ...


class DecoderPairs:
    """A decoder through the engine: all pairs in one prefix tree, so a query's tokens are computed once.

    Args:
        folder: of a causal model, or of one with a trained head.
        machine: what of the machine it may use.
        tokens: for yes and no, of a causal model.

    Raises:
        InputError: whatever is wrong with the folder.
    """

    def __init__(
        self, folder: RerankerFolder, machine: MachineSettings, tokens: tuple[int, int] | None
    ) -> None:
        head = "yes-no" if folder.kind == "causal" else "binary" if folder.num_labels == 1 else "classify"
        session = Session(folder=Path(tempfile.gettempdir()))
        self._scorer = Scorer.open([Member(model=folder.path, head=head)], machine, session=session)
        self._tokens = tokens
        self._pad_token_id: int | None = getattr(
            self._scorer.decoder.model.checkpoint.config, "pad_token_id", None
        )

    def logits(self, pairs: EncodedPairs, batch_size: int) -> Scored:
        """See `PairScorer`; micro-batches are planned, whatever the batch size."""
        if not pairs:
            return
        prompts = [self._build_prompt(place, pair["input_ids"]) for place, pair in enumerate(pairs)]
        check_token_ids(self._scorer.decoder.model.checkpoint, prompts)
        for rows in self._scorer.prepare(prompts).groups(Deadline()):
            yield {int(row.question.id): torch.from_numpy(row.scores.astype(np.float32)) for row in rows}

    def _build_prompt(self, place: int, ids: Sequence[int]) -> Prompt:
        if not ids:
            raise InputError(f"inputs[{place}]: the pair becomes no token; expected at least one")
        question = Question(id=str(place), prompt="", options=self._scorer.labels or ("",))
        return Prompt(question=question, branches=self._branches(ids))

    def _branches(self, ids: Sequence[int]) -> tuple[Branch, ...]:
        if self._tokens is not None:
            return tuple(_branch(ids, Target(position=len(ids), token_id=token)) for token in self._tokens)
        position = pooled_position(ids, self._pad_token_id)
        return (_branch(ids[: position + 1], Target(position=position, token_id=None)),)

    def close(self) -> None:
        """See `PairScorer`."""
        self._scorer.close()


def _branch(ids: Sequence[int], target: Target) -> Branch:
    token_ids = np.array(ids, np.int32)
    return Branch(option=0, order=(), label=None, token_ids=token_ids, text="", targets=(target,))


class EncoderPairs:
    """An encoder with a sequence-classification head, loaded whole by transformers.

    Args:
        folder: its checkpoint.
        machine: its device, the first of several, and its dtype.
        tokenizer: pads batches.

    Raises:
        InputError: a checkpoint that transformers cannot load.
    """

    def __init__(self, folder: RerankerFolder, machine: MachineSettings, tokenizer: Any) -> None:
        from transformers import AutoModelForSequenceClassification

        read_config(folder.path)
        devices = resolve_devices(machine.devices)
        dtype = resolve_dtype(machine.dtype, stored_dtype(folder.path), devices)
        with OPENING, one_line(folder.path, "transformers cannot load it"):
            model = AutoModelForSequenceClassification.from_pretrained(
                folder.path, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        self._model = model.eval().to(devices[0])
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def logits(self, pairs: EncodedPairs, batch_size: int) -> Scored:
        """See `PairScorer`; the longest pairs first, so that little is padded."""
        order = sorted(range(len(pairs)), key=lambda place: -len(pairs[place]["input_ids"]))
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            batch = self._tokenizer.pad([pairs[place] for place in places], return_tensors="pt")
            logits = self._model(**batch.to(self._model.device)).logits.float().cpu()
            yield dict(zip(places, logits, strict=True))

    def close(self) -> None:
        """See `PairScorer`."""
        del self._model
