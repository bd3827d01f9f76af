"""What resident and streamed readers share: prompts, losses of readouts, what is trained, what is saved.

Knows nothing of where the base weights are: that is `resident_reader` and `streamed_reader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from strata.engine.heads.debiasing.registry import choose_debias
from strata.engine.heads.registry import HEADS
from strata.engine.model.final_logits import final_logits
from strata.engine.prompts.render import PromptSettings, render_prompts
from strata.engine.prompts.templates import load_template
from strata.engine.prompts.texts import render_texts
from strata.engine.prompts.tokenizer import read_tokenizer
from strata.engine.questions.shots import read_shots
from strata.engine.types import Prompt, Question, RunWarnings
from strata.engine.weights.checkpoint import Checkpoint
from strata.training.config import TrainConfig
from strata.training.loss_scale import accumulate_scaled
from strata.training.readers.losses import (
    classifier_scores,
    group_targets,
    label_scores,
    sum_loss,
    token_log_probabilities,
)
from strata.training.readers.memory_plan import fit_micro_batch, shape_of
from strata.training.readers.packed_batch import PackedBatch, pack_examples, split_examples
from strata.training.readers.trained_model import TrainedModel
from strata.training.tasks import count_units, trains_classifier
from strata.training.types import Example, ParameterGroup

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 8192}


class DecoderReader:
    """The part of a `Reader` that does not depend on where the base weights are.

    Args:
        config: the run's settings.
        checkpoint: the base model.
        trained: the model with what is trained of it.
        device: where it computes.
    """

    def __init__(
        self, config: TrainConfig, checkpoint: Checkpoint, trained: TrainedModel, device: torch.device
    ) -> None:
        self._rope_positions = 0
        self.config, self.checkpoint, self.trained, self.device = config, checkpoint, trained, device
        self.warnings = RunWarnings()
        self._label_rows = {name: row for row, name in enumerate(trained.labels)}
        head = HEADS[trained.head]
        debias = choose_debias(config.debias)
        self._prompt_settings = PromptSettings(
            template=load_template(
                config.template, head=head, chat=config.chat, lists_options=debias.masks_options
            ),
            head=head,
            debias=debias,
            max_tokens=config.max_tokens,
            window=getattr(checkpoint.config, "max_position_embeddings", None),
            chat=config.chat,
            system=config.system,
            shots=_read_shots(config),
            num_shots=None if config.shots is None else config.num_shots,
        )
        self.micro_batch_tokens = config.micro_batch_tokens or MICRO_BATCH_TOKENS[device.type]
        if config.memory_gib is not None and config.micro_batch_tokens is None:
            self.micro_batch_tokens = fit_micro_batch(
                config,
                shape_of(config, checkpoint, trained.dtype),
                config.memory_gib,
                most=self.micro_batch_tokens,
                on_cpu=device.type == "cpu",
            )

    @property
    def dtype(self) -> torch.dtype:
        """What the base model computes in."""
        return self.trained.dtype

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the checkpoint; examples that were made without one need none."""
        return read_tokenizer(self.config.model)

    def render(self, questions: Sequence[Question]) -> list[Prompt]:
        """Prompts of questions for the task's head, cut to --max-tokens or the model's window."""
        settings, source = self._prompt_settings, str(self.config.questions)
        if self.config.task == "classify":
            pad = getattr(self.checkpoint.config, "pad_token_id", None)
            return render_texts(
                questions, settings, self.tokenizer, self.warnings, pad_token_id=pad, source=source
            )
        return render_prompts(questions, settings, self.tokenizer, self.warnings, source=source)

    def loss(self, scores: Sequence[np.ndarray], examples: Sequence[Example]) -> float:
        """The task's mean loss of scores, without label smoothing."""
        if self.config.task == "lm":
            counts = [len(example.prompt.branches[0].targets) for example in examples]
            return -float(np.average([float(mean[0]) for mean in scores], weights=counts))
        found = [torch.from_numpy(scores_O) for scores_O in scores]
        return float(sum_loss(self.config.task, found, examples)) / count_units(self.config.task, examples)

    def accumulate_gradients(self, batch: Sequence[Example], *, seed: int) -> float:
        """Adds the gradient of the batch's mean loss; see `Reader`. In float16 the loss is scaled."""
        if self.dtype != torch.float16:
            return self.add_gradients(batch, seed, 1.0)
        parameters = [one for group in self.parameter_groups() for one in group.parameters.values()]
        return accumulate_scaled(parameters, partial(self.add_gradients, batch, seed))

    def add_gradients(self, batch: Sequence[Example], seed: int, scale: float) -> float:
        """Adds the gradient of the batch's mean loss times a scale; returns that loss.

        Raises:
            NotImplementedError: by this class, which has no weights and serves plans.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """Adapter and head, or all weights."""
        return self.trained.parameter_groups(self.config.head_lr_scale)

    def save(self, folder: Path) -> None:
        """Adapter (or checkpoint) and tokenizer, as transformers and PEFT write them."""
        self.trained.save(folder)
        self.tokenizer.save_pretrained(str(folder))

    def pack(self, examples: Sequence[Example]) -> list[PackedBatch]:
        """Micro-batches of the examples, in order; rotary tables reach their longest prompt."""
        parts = split_examples(examples, self.micro_batch_tokens)
        batches = [pack_examples(part, self.device) for part in parts]
        longest = max(int(batch.tree.position_ids.max()) for batch in batches)
        if longest >= self._rope_positions:
            self._rope_positions = longest + 1
            self.trained.decoder.prepare_rope(longest, self.device, self.dtype)
        return batches

    def scores_of(self, readouts: torch.Tensor, batch: PackedBatch) -> list[torch.Tensor]:
        """Scores of a micro-batch's examples from its readouts [S, D]; lm: a log-probability a target."""
        task = self.config.task
        if trains_classifier(task):
            weight, bias = self.trained.classifier_weight, self.trained.classifier_bias
            if task == "classify":
                return label_scores(readouts, batch.targets, batch.examples, weight, bias, self._label_rows)
            return classifier_scores(task, readouts, batch.targets, batch.examples, weight, bias)
        final = final_logits(self.checkpoint.config)
        found = token_log_probabilities(readouts, batch.targets, self.trained.lm_head, final)
        return group_targets(task, found, batch.targets, batch.examples)

    def loss_of(self, readouts: torch.Tensor, batch: PackedBatch, num_units: float) -> torch.Tensor:
        """A micro-batch's part of the mean loss of a batch of so many units."""
        scores = self.scores_of(readouts, batch)
        summed = sum_loss(self.config.task, scores, batch.examples, self.config.label_smoothing)
        return summed / num_units

    def to_numpy(self, scores: Sequence[torch.Tensor]) -> list[np.ndarray]:
        """Scores as the trainer wants them: [O] float64; lm: [1], the mean."""
        plain = [scores_O.detach().double().cpu().numpy() for scores_O in scores]
        return [found.mean(keepdims=True) for found in plain] if self.config.task == "lm" else plain


def _read_shots(config: TrainConfig) -> tuple[Question, ...]:
    if config.shots is None:
        return ()
    return read_shots(config.shots, config.num_shots, context_column=config.context_column)
