"""An encoder that learns to choose: transformers' multiple-choice models, trained whole or through LoRA.

Flow of a step: questions -> rows (`EncoderTokenizer`) -> micro-batches by length -> logits ->
cross-entropy over a question's options, divided by the questions of the whole batch, so that micro-batches
add up -> backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from strata.engine.encoders.encoder import (
    add_adapters,
    head_modules,
    is_within,
    load_encoder,
    measure_encoder,
    read_encoder_config,
)
from strata.engine.encoders.rows import EncoderPrompt, EncoderTokenizer, batch_by_length, pad_rows
from strata.engine.types import InputError, Prompt, Question, RunWarnings
from strata.training.config import TrainConfig
from strata.training.readers.devices import choose_device
from strata.training.readers.losses import sum_loss
from strata.training.readers.seeds import micro_batch_seed, seeded
from strata.training.readers.trained_parts import group_parameters, lora_settings
from strata.training.tasks import Task
from strata.training.types import Example, ParameterGroup

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
TASK: Task = "multiple-choice"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedEncoder:
    """An encoder, and which part of it makes the choice.

    Attributes:
        module: the PeftModel, or the bare model when all weights are trained; on its device.
        head: full names, in the bare model, of the modules that make the choice.
    """

    module: Any
    head: Sequence[str]


class EncoderReader:
    """A `Reader` of task multiple-choice.

    Weights that are trained are float32; with --dtype bfloat16 the passes are computed in it.

    Args:
        config: the run's settings.
        encoder: what learns.
        writer: makes rows of questions.
        device: where it computes.
        warnings: those of `writer`.
    """

    def __init__(
        self,
        config: TrainConfig,
        encoder: TrainedEncoder,
        writer: EncoderTokenizer,
        device: torch.device,
        warnings: RunWarnings,
    ) -> None:
        self.config, self.module, self.device, self.warnings = config, encoder.module, device, warnings
        self.tokenizer = writer.tokenizer
        # Trained weights are kept in float32, and float16 would need its gradients scaled.
        self.dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self._head, self._writer = tuple(encoder.head), writer
        self._micro_batch_tokens = config.micro_batch_tokens or MICRO_BATCH_TOKENS[device.type]

    def render(self, questions: Sequence[Question]) -> list[Prompt]:
        """Rows of questions, cut to --max-tokens or the model's window."""
        return list(self._writer.encode(questions))

    def accumulate_gradients(self, batch: Sequence[Example], *, seed: int) -> float:
        """Adds the gradient of the batch's mean loss; see `Reader`."""
        prompts = self._rows_of(batch)
        total = 0.0
        self.module.train()
        for number, chosen in enumerate(self._split(prompts)):
            with seeded(micro_batch_seed(seed, number), self.device):
                scores = self._forward([prompts[index] for index in chosen])
                examples = [batch[index] for index in chosen]
                loss = sum_loss(TASK, scores, examples, self.config.label_smoothing) / len(batch)
                loss.backward()
            total += loss.item()
        self.module.eval()
        return total

    @torch.no_grad()
    def score(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Scores of examples; see `Reader`."""
        prompts = self._rows_of(examples)
        found: dict[int, np.ndarray] = {}
        self.module.eval()
        for chosen in self._split(prompts):
            scores = self._forward([prompts[index] for index in chosen])
            pairs = zip(chosen, scores, strict=True)
            found |= {index: scores_O.double().cpu().numpy() for index, scores_O in pairs}
        return [found[index] for index in range(len(prompts))]

    def loss(self, scores: Sequence[np.ndarray], examples: Sequence[Example]) -> float:
        """Mean cross-entropy of scores, without label smoothing."""
        found = [torch.from_numpy(scores_O) for scores_O in scores]
        return float(sum_loss(TASK, found, examples)) / len(examples)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The adapter's parameters (or the whole encoder's), and the head's at a learning rate apart."""
        scale = self.config.head_lr_scale
        return group_parameters(self.module, lambda name: is_within(_bare(name), self._head), scale)

    def save(self, folder: Path) -> None:
        """PEFT's layout, or a whole checkpoint when all weights are trained; the tokenizer with both."""
        self.module.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    def _rows_of(self, examples: Sequence[Example]) -> list[EncoderPrompt]:
        """The examples' rows; those that another reader rendered are written anew from their question."""
        prompts = [example.prompt for example in examples]
        foreign = [prompt.question for prompt in prompts if not isinstance(prompt, EncoderPrompt)]
        written = iter(self._writer.encode(foreign))
        return [prompt if isinstance(prompt, EncoderPrompt) else next(written) for prompt in prompts]

    def _split(self, prompts: Sequence[EncoderPrompt]) -> list[list[int]]:
        lengths = [(len(prompt.branches), prompt.longest_tokens) for prompt in prompts]
        return batch_by_length(lengths, self._micro_batch_tokens)

    def _forward(self, prompts: Sequence[EncoderPrompt]) -> list[torch.Tensor]:
        """Scores [O] of every question, float32, in the autograd graph."""
        inputs = pad_rows(prompts, self.tokenizer, self.device)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            logits = self.module(**inputs).logits
        return list(logits[:, 0].float().split([len(prompt.branches) for prompt in prompts]))


def open_encoder_reader(config: TrainConfig) -> EncoderReader:
    """Opens the encoder of a run: one with a trained choice head, or a plain one, which gets a new head.

    Raises:
        InputError: no such checkpoint or device, or settings that do not fit an encoder.
    """
    _refuse_settings(config)
    device = choose_device(config)
    shape = measure_encoder(read_encoder_config(config.model))
    warnings = RunWarnings()
    writer = EncoderTokenizer(config.model, shape, config.max_tokens, warnings, source=str(config.questions))
    with seeded(config.seed):
        model, missing = load_encoder(config.model, torch.float32)
        head = head_modules(model)
        module: Any = model
        if config.full:
            model.requires_grad_(True)
        elif config.adapter is not None:
            module = add_adapters(model, [config.adapter], missing, trainable=True)
        else:
            module = _add_lora(config, model, head)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    encoder = TrainedEncoder(module=module.to(device), head=head)
    return EncoderReader(config, encoder, writer, device, warnings)


def _refuse_settings(config: TrainConfig) -> None:
    for flag, given, expected in (
        ("--dtype float16", config.dtype == "float16", "auto, float32 or bfloat16"),
        ("--base-storage nf4", config.base_storage == "nf4", "auto"),
        ("--template", config.template is not None, "no --template: an encoder's rows have a fixed layout"),
        ("--streamed", config.streamed, "no --streamed: only decoders are streamed"),
    ):
        if given:
            raise InputError(f"{flag}: does not go with --task multiple-choice; expected {expected}")


def _add_lora(config: TrainConfig, model: nn.Module, head: Sequence[str]) -> Any:
    """LoRA on the encoder's linear layers; the head is trained whole and saved with it."""
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_within(name, head)
    ]
    wanted = config.lora_targets
    targets = [
        name for name in linear if wanted == ("all-linear",) or any(_ends_in(name, end) for end in wanted)
    ]
    unknown = [end for end in wanted if end != "all-linear" and not any(_ends_in(n, end) for n in linear)]
    if unknown:
        names = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise InputError(
            f"--lora-targets: no linear layer is called {unknown[0]!r}; expected {', '.join(names)}"
        )
    settings = lora_settings(config, targets, head)
    from peft import get_peft_model

    return get_peft_model(model, settings)


def _ends_in(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def _bare(name: str) -> str:
    """A parameter's name in the bare model, from that in a PeftModel."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
