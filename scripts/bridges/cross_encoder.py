"""`StrataCrossEncoder`: sentence-transformers' CrossEncoder, computed by strata, for decoders of any size.

`predict` and `rank` have the signatures, the defaults and the kinds of results of sentence-transformers 6's,
which is not needed. What differs: micro-batches and devices are chosen when the model is opened, all pairs of
a call share a prefix tree, and models are folders on this machine.
Source: sentence_transformers.cross_encoder.model.CrossEncoder, version 6.2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch

from strata.engine.json_files import shown
from strata.engine.machine.settings import MachineSettings
from strata.engine.progress import progress_bar
from strata.engine.prompts.tokenizer import read_tokenizer
from strata.engine.types import InputError
from strata.scripts.bridges.cross_encoder_folder import RerankerFolder, read_reranker_folder
from strata.scripts.bridges.cross_encoder_settings import (
    Activation,
    apply_activation,
    check_count,
    check_prompts,
    find_activation,
    find_tokens,
    longest_pair,
)
from strata.scripts.bridges.pair_scorers import DecoderPairs, EncoderPairs, PairScorer
from strata.scripts.bridges.pair_tokens import Pair, PairTokenizer, check_pairs, is_single_pair, is_text

PairInput = Sequence[str]

logger = logging.getLogger(__name__)


class StrataCrossEncoder:
    """A reranker, opened: a causal model (yes minus no), or one with a sequence-classification head.

    Attributes:
        num_labels: scores of a pair.
        activation_fn: applied to logits, unless a call names another: sigmoid where there is one label.
        prompts: texts that may stand before queries, by name.
        default_prompt_name: the one of these that is used by default.
        max_seq_length: longest pair in tokens.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        *,
        device: str | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        max_length: int | None = None,
        activation_fn: Activation | None = None,
        machine: MachineSettings | None = None,
    ) -> None:
        """Opens a reranker.

        Args:
            model_name_or_path: folder, as sentence-transformers saves it or as transformers does.
            device: cpu, or one such as cuda:0; all CUDA devices by default.
            prompts: in place of the folder's.
            default_prompt_name: in place of the folder's.
            max_length: in place of the tokenizer's and the model's.
            activation_fn: in place of the folder's.
            machine: dtype, memory budgets and devices, as `strata score` has them.

        Raises:
            InputError: whatever is wrong with the folder or an argument, in one line.
        """
        if max_length is not None:
            check_count("max_length", max_length)
        folder = read_reranker_folder(Path(model_name_or_path))
        tokenizer = read_tokenizer(folder.path)
        tokenizer.model_max_length = max_length or longest_pair(folder, tokenizer.model_max_length)
        self.max_seq_length: int = tokenizer.model_max_length
        self.num_labels = folder.num_labels
        self.activation_fn = activation_fn or find_activation(folder)
        self.prompts = dict(folder.prompts) if prompts is None else prompts
        self.default_prompt_name = default_prompt_name or folder.default_prompt_name
        check_prompts(self.prompts, self.default_prompt_name)
        self._tokens = PairTokenizer(tokenizer, folder.uses_chat)
        self._scorer = _open(folder, _on_device(machine or MachineSettings(), device), tokenizer)

    def __enter__(self) -> StrataCrossEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives memory and open files back."""
        self._scorer.close()

    def predict(
        self,
        inputs: Sequence[PairInput] | PairInput,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str | torch.device] | None = None,
        pool: dict[Literal["input", "output", "processes"], Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> list[torch.Tensor] | np.ndarray | torch.Tensor:
        """Scores pairs.

        Args:
            inputs: pairs of a query and a document, or one pair.
            prompt_name: which of the prompts stands before queries.
            prompt: that text itself.
            batch_size: pairs an encoder is given at once; a decoder's micro-batches are planned.
            show_progress_bar: tell on stderr how far it is.
            activation_fn: applied to the logits in place of the model's own.
            apply_softmax: over the labels, where there are several.
            convert_to_numpy: an array rather than a list of tensors.
            convert_to_tensor: one tensor, whatever `convert_to_numpy` says.
            device: has no effect: devices are chosen when the model is opened.
            pool: has none, either.
            chunk_size: nor has this.
            kwargs: none; they are there to be refused by name.

        Returns:
            [n] scores, or [n, labels] where there are several; of one pair, its own.

        Raises:
            InputError: inputs that are no pairs of texts, an unknown prompt name or argument.
        """
        if kwargs:
            raise InputError(f"predict: argument {min(kwargs)!r} is unknown")
        check_count("batch_size", batch_size)
        _warn_of(device=device, pool=pool, chunk_size=chunk_size)
        is_single = is_single_pair(inputs)
        pairs = check_pairs([inputs] if is_single else inputs)
        logits = self._logits(pairs, self._resolve_prompt(prompt, prompt_name), batch_size, show_progress_bar)
        scores = self._activate(logits, activation_fn or self.activation_fn, bool(apply_softmax))
        found: Any = _convert(scores, as_tensor=convert_to_tensor, as_numpy=convert_to_numpy)
        return found[0] if is_single else found

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable | None = None,
        device: str | list[str | torch.device] | None = None,
        pool: dict[Literal["input", "output", "processes"], Any] | None = None,
        chunk_size: int | None = None,
    ) -> list[dict[Literal["corpus_id", "score", "text"], int | float | str]]:
        """Sorts documents by their scores, best first; equal ones keep their order.

        Args:
            query: what they are scored for.
            documents: the texts.
            top_k: how many to return; all by default.
            return_documents: also their texts.
            prompt_name: as in `predict`, like what follows.
            prompt: text before the query.
            batch_size: pairs an encoder is given at once.
            show_progress_bar: tell on stderr how far it is.
            activation_fn: applied to the logits.
            device: has no effect.
            pool: has none, either.
            chunk_size: nor has this.

        Returns:
            For each, its place in `documents` as `corpus_id`, its `score`, and its `text` if asked for.

        Raises:
            InputError: a model of several labels, documents that are no list of texts, or as `predict` does.
        """
        if not isinstance(documents, (list, tuple)):
            raise InputError(f"documents: {shown(documents)}; expected a list of texts")
        if top_k is not None:
            check_count("top_k", top_k, least=0)
        if self.num_labels != 1:
            raise InputError(
                f"rank: the model has {self.num_labels} labels; expected 1, or predict in its place"
            )
        scores = self.predict(
            [(query, document) for document in documents],
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=activation_fn,
            convert_to_tensor=True,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
        )
        found: list[dict[Any, Any]] = [
            {"corpus_id": place, "score": score} | ({"text": documents[place]} if return_documents else {})
            for place, score in enumerate(torch.as_tensor(scores).tolist())
        ]
        return sorted(found, key=lambda row: row["score"], reverse=True)[:top_k]

    def _logits(
        self, pairs: Sequence[Pair], prompt: str | None, batch_size: int, shown: bool | None
    ) -> torch.Tensor:
        """[n, L] float32."""
        encoded = self._tokens.encode(pairs, prompt)
        found: dict[int, torch.Tensor] = {}
        with progress_bar("pairs", len(pairs), shown=bool(shown)) as advance:
            for group in self._scorer.logits(encoded, batch_size):
                found |= group
                advance(len(group))
        return torch.stack([found[place] for place in range(len(pairs))]) if pairs else torch.empty(0)

    def _activate(self, logits: torch.Tensor, activation: Activation, apply_softmax: bool) -> torch.Tensor:
        scores = apply_activation(activation, logits) if len(logits) else logits
        if self.num_labels == 1 and scores.ndim > 1:
            scores = scores.squeeze(-1)
        return torch.softmax(scores, dim=1) if apply_softmax and scores.ndim > 1 else scores

    def _resolve_prompt(self, prompt: str | None, name: str | None) -> str | None:
        if prompt is not None:
            if not is_text(prompt):
                raise InputError(f"prompt={shown(prompt)}: expected a text")
            return prompt
        if name is None:
            return self.prompts.get(self.default_prompt_name) if self.default_prompt_name else None
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise InputError(f"prompt_name={name!r}: expected one of the model's prompts ({known})")
        return self.prompts[name]


def _convert(scores: torch.Tensor, *, as_tensor: bool, as_numpy: bool) -> Any:
    if as_tensor:
        return scores
    if as_numpy:
        return scores.float().numpy() if len(scores) else np.array([])
    return list(scores)


def _warn_of(**given: object) -> None:
    for name, setting in given.items():
        if setting is not None:
            logger.warning("%s has no effect: strata chooses its devices when a model is opened", name)


def _on_device(machine: MachineSettings, device: str | None) -> MachineSettings:
    return machine if device in (None, "cuda") else replace(machine, devices=str(device))


def _open(folder: RerankerFolder, machine: MachineSettings, tokenizer: Any) -> PairScorer:
    if folder.kind == "encoder":
        return EncoderPairs(folder, machine, tokenizer)
    tokens = find_tokens(folder, tokenizer) if folder.kind == "causal" else None
    return DecoderPairs(folder, machine, tokens)
