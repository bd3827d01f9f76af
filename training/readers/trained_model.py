"""The model that is trained: transformers' classes with PEFT's LoRA, its layers run by the engine's Decoder.

Two ways in: `open_resident` loads all weights through transformers (4-bit with bitsandbytes on request);
`open_skeleton` makes the same modules without weights, which a streamed run assigns layer by layer. Both draw
the adapter's and the head's first values from the same seed, so both begin from the same numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedConfig,
)
from transformers.utils import logging as transformers_logging

from strata.engine.model.attention import ATTENTION_NAME
from strata.engine.model.decoder import Decoder, build_decoder
from strata.engine.model.families import refuse_unsupported
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.tensor_reader import TensorReader
from strata.training.config import TrainConfig
from strata.training.readers.losses import HEADS
from strata.training.types import ParameterGroup

HEAD_STD = 0.02


@dataclass(kw_only=True, eq=False)
class TrainedModel:
    """A model, and the parts of it that a step touches.

    Attributes:
        module: the PeftModel, or the bare model when all weights are trained.
        base: the transformers model inside (classifier or causal language model).
        decoder: runs its layers.
        head: binary, contrast, letters or loglik.
    """

    module: nn.Module
    base: nn.Module
    decoder: Decoder
    head: str

    @property
    def classifier_weight(self) -> torch.Tensor:
        """The trained head [1, D], or [1, 2 D] for contrast."""
        score = self.base.get_submodule("score")
        modules = getattr(score, "modules_to_save", None)
        return (score if modules is None else modules["default"]).get_parameter("weight")

    @property
    def lm_head(self) -> nn.Module:
        """The vocabulary projection."""
        return self.base.get_output_embeddings()  # type: ignore[operator]

    def parameter_groups(self, head_lr_scale: float) -> list[ParameterGroup]:
        """Trained parameters: the adapter's (or all), and the classifier's with its own learning rate."""
        trained = {name: own for name, own in self.module.named_parameters() if own.requires_grad}
        head = {name: own for name, own in trained.items() if ".score." in f".{name}"}
        body = {name: own for name, own in trained.items() if name not in head}
        groups = (
            ParameterGroup(parameters=body, scale=1.0),
            ParameterGroup(parameters=head, scale=head_lr_scale),
        )
        return [group for group in groups if group.parameters]

    def dropout_on(self, on: bool) -> None:
        """LoRA's dropout; the base model's own stays off."""
        self.module.eval()
        for name, module in self.module.named_modules():
            if "lora_dropout" in name:
                module.train(on)

    def save(self, folder: Path) -> None:
        """PEFT's layout, or a whole checkpoint when all weights are trained."""
        self.module.save_pretrained(str(folder))  # type: ignore[operator]


def open_resident(config: TrainConfig, checkpoint: Checkpoint, device: torch.device) -> TrainedModel:
    """Loads the base model onto a device and puts adapter and head on it.

    Raises:
        InputError: a model that strata's layers cannot run, or an adapter that does not fit.
    """
    options: dict[str, Any] = {"dtype": dtype_of(config, checkpoint), "attn_implementation": "eager"}
    if config.base_storage == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
        options["device_map"] = {"": str(device)}
    refuse_unsupported(checkpoint.config)
    build_decoder(checkpoint.config)  # refuses families whose layers do not fit, before any weight is read
    with _quiet_loading():
        base = _model_class(config).from_pretrained(config.model, **_labels(config), **options)
    if config.base_storage != "nf4":
        base = base.to(device)
    return _finish(config, base, device, stored_score(config, checkpoint))


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' table of weights that a new head does not find in the checkpoint."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def open_skeleton(config: TrainConfig, checkpoint: Checkpoint, device: torch.device) -> TrainedModel:
    """The same modules, of which only the adapter and the head take memory."""
    return make_skeleton(
        config, checkpoint.config, dtype_of(config, checkpoint), device, stored_score(config, checkpoint)
    )


def make_skeleton(
    config: TrainConfig,
    model: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    score: torch.Tensor | None = None,
) -> TrainedModel:
    """A skeleton of a model that need not be there; see `open_skeleton`. `score`: its classifier, if any."""
    with init_empty_weights(include_buffers=False):
        base = _model_class(config).from_config(model, dtype=dtype)
    for module in base.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                # PEFT puts an adapter where its base weight is: one element, seen as the whole matrix.
                shared = torch.zeros((), dtype=weight.dtype, device=device).expand(weight.shape)
                module._parameters[name] = nn.Parameter(shared, requires_grad=False)
    return _finish(config, base, device, score)


def dtype_of(config: TrainConfig, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype the base model computes in."""
    return checkpoint.stored_dtype if config.dtype == "auto" else getattr(torch, config.dtype)


def _finish(config: TrainConfig, base: Any, device: torch.device, score: torch.Tensor | None) -> TrainedModel:
    head = HEADS[config.task]
    if head in ("binary", "contrast"):
        width = _head_width(head, base.config.hidden_size)
        base.score = _make_score(config.seed, width, score).to(device)
    inner = base.get_submodule(base.base_model_prefix)
    inner.config._attn_implementation = ATTENTION_NAME
    inner.embed_tokens.padding_idx = None  # a row like any other, as in the engine
    module: nn.Module = base
    if config.full:
        base.requires_grad_(True)
    else:
        module = _add_adapter(config, base, head)
    decoder = Decoder(config=inner.config, base=inner, layers=inner.layers)
    trained = TrainedModel(module=module, base=base, decoder=decoder, head=head)
    trained.dropout_on(False)
    return trained


def _add_adapter(config: TrainConfig, base: Any, head: str) -> nn.Module:
    from peft import LoraConfig, PeftModel, get_peft_model

    if config.adapter is not None:
        try:
            return PeftModel.from_pretrained(base, str(config.adapter), is_trainable=True)
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            raise InputError(f"--adapter: {config.adapter}: {str(error).splitlines()[0]}") from None
    classifies = head in ("binary", "contrast")
    settings = LoraConfig(
        task_type="SEQ_CLS" if classifies else "CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=_target_modules(config, base),
        modules_to_save=["score"] if classifies else None,
    )
    with _seeded_initialization(config.seed):
        try:
            return get_peft_model(base, settings)
        except ValueError as error:
            raise InputError(f"--lora-targets: {str(error).splitlines()[0]}") from None


def _target_modules(config: TrainConfig, base: Any) -> list[str]:
    """Names of the linear modules to adapt. `all-linear` takes all of the decoder layers, routers apart.

    PEFT's own all-linear also adapts fused experts, as parameters, which no `strata score` could apply.
    """
    if config.lora_targets != ("all-linear",):
        return list(config.lora_targets)
    layers = base.get_submodule(base.base_model_prefix).get_submodule("layers")
    linears = {
        name.rpartition(".")[2]
        for name, own in layers.named_modules()
        if type(own) is nn.Linear or type(own).__name__ == "Linear4bit"
    }
    return sorted(linears - {"gate", "router"})


@contextlib.contextmanager
def _seeded_initialization(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def stored_score(config: TrainConfig, checkpoint: Checkpoint) -> torch.Tensor | None:
    """The checkpoint's own classifier, where it has one of the width that the task's head needs."""
    stored = checkpoint.weights.get("score.weight")
    width = _head_width(HEADS[config.task], checkpoint.config.hidden_size)
    if stored is None or stored.parts[0][0].shape != (1, width):
        return None
    return TensorReader().read(checkpoint.require_plain("score.weight")).float()


def _make_score(seed: int, width: int, stored: torch.Tensor | None) -> nn.Linear:
    """The classifier in float32, small random numbers where none is stored."""
    score = nn.Linear(width, 1, bias=False)
    if stored is None:
        generator = torch.Generator().manual_seed(seed)
        stored = torch.randn(1, width, generator=generator) * HEAD_STD / math.sqrt(width / 1024)
    score.weight = nn.Parameter(stored)
    return score


def _head_width(head: str, hidden_size: int) -> int:
    return 2 * hidden_size if head == "contrast" else hidden_size


def _model_class(config: TrainConfig) -> Any:
    return AutoModelForSequenceClassification if _classifies(config) else AutoModelForCausalLM


def _labels(config: TrainConfig) -> dict[str, Any]:
    # The head is put on by hand, in float32 and of the width the task needs.
    return {"num_labels": 1, "ignore_mismatched_sizes": True} if _classifies(config) else {}


def _classifies(config: TrainConfig) -> bool:
    return HEADS[config.task] in ("binary", "contrast")
