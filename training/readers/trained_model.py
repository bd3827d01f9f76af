"""The model that is trained: transformers' classes with PEFT's LoRA, its layers run by the engine's Decoder.

Two ways in: `open_resident` loads all weights through transformers (4-bit with bitsandbytes on request);
`open_skeleton` makes the same modules without weights, which a streamed run assigns layer by layer. Both draw
the adapter's and the head's first values from the same seed, so both begin from the same numbers.
"""

from __future__ import annotations

import contextlib
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

from strata.engine.adapters.adapter_config import check_for_peft
from strata.engine.adapters.labels import LABELS_NAME, write_labels
from strata.engine.adapters.trained_cut import TrainedCut, write_trained_cut
from strata.engine.model.attention import ATTENTION_NAME
from strata.engine.model.decoder import Decoder
from strata.engine.model.families import refuse_unsupported
from strata.engine.model.rehearsal import build_rehearsed
from strata.engine.model_files.library_errors import one_line
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.first_layers import cut_settings
from strata.engine.weights.shards import refuse_duplicates
from strata.training.config import TrainConfig
from strata.training.label_names import label_names, name_labels
from strata.training.readers.classifier_head import (
    StoredScore,
    brings_bias,
    is_score,
    make_score,
    score_width,
    stored_score,
    trained_score,
)
from strata.training.readers.devices import choose_dtype
from strata.training.readers.seeds import seeded
from strata.training.readers.trained_parts import group_parameters, lora_settings, target_modules
from strata.training.tasks import HEADS, trains_classifier
from strata.training.types import ParameterGroup


@dataclass(kw_only=True, eq=False)
class TrainedModel:
    """A model, and the parts of it that a step touches.

    Attributes:
        module: the PeftModel, or the bare model when all weights are trained.
        base: the transformers model inside (classifier or causal language model).
        decoder: runs its layers.
        head: binary, contrast, letters, loglik or classify.
        dtype: what the base computes in; what is added to it is float32.
        labels: the names of the classifier's rows, with head classify.
        cut: the layers that are computed and whether the final norm follows, where these are not all.
        saved_dtype: of the base's weights in a whole checkpoint; None leaves them as they are.
    """

    module: nn.Module
    base: nn.Module
    decoder: Decoder
    head: str
    dtype: torch.dtype
    labels: tuple[str, ...] = ()
    cut: TrainedCut | None = None
    saved_dtype: torch.dtype | None = None

    @property
    def classifier_weight(self) -> torch.Tensor:
        """The trained head [1, D], [1, 2 D] for contrast, or [labels, D]."""
        return trained_score(self.base).get_parameter("weight")

    @property
    def classifier_bias(self) -> torch.Tensor | None:
        """Its bias, one number a row; None for a head without one."""
        return getattr(trained_score(self.base), "bias", None)

    @property
    def lm_head(self) -> nn.Module:
        """The vocabulary projection."""
        return self.base.get_output_embeddings()  # type: ignore[operator]

    def parameter_groups(self, head_lr_scale: float) -> list[ParameterGroup]:
        """Trained parameters: the adapter's (or all), and the classifier's at a learning rate apart."""
        return group_parameters(self.module, is_score, head_lr_scale)

    def dropout_on(self, on: bool) -> None:
        """LoRA's dropout; that of the base model stays off."""
        self.module.eval()
        for name, module in self.module.named_modules():
            if "lora_dropout" in name:
                module.train(on)

    def save(self, folder: Path) -> None:
        """PEFT's layout, or a whole checkpoint when all weights are trained.

        Peak memory: a second copy of all weights where a whole checkpoint is saved in another dtype.
        """
        if self.saved_dtype in (None, self.dtype):
            self.module.save_pretrained(str(folder))  # type: ignore[operator]
        else:
            _save_whole(self.base, folder, self.saved_dtype)
        if self.module is self.base:
            return
        if self.labels:
            write_labels(folder / LABELS_NAME, self.labels)
        if self.cut is not None:
            write_trained_cut(folder, layers=self.cut.layers, layers_norm=self.cut.layers_norm)


def _save_whole(base: Any, folder: Path, dtype: torch.dtype) -> None:
    """Saves a checkpoint whose weights, but for the classifier's, are of a dtype."""
    converted: dict[int, torch.Tensor] = {}
    weights = {}
    for name, weight in base.state_dict().items():
        if weight.is_floating_point() and not is_score(name):
            # Tied weights stay one tensor, of which transformers writes one.
            weight = converted.setdefault(weight.data_ptr(), weight.to(dtype))
        weights[name] = weight
    base.save_pretrained(str(folder), state_dict=weights)
    # It has told the dtype of the module, not of what it wrote.
    base.config.dtype = dtype
    base.config.save_pretrained(str(folder))


def open_resident(config: TrainConfig, checkpoint: Checkpoint, device: torch.device) -> TrainedModel:
    """Loads the base model onto a device and puts adapter and head on it.

    With --dtype auto a checkpoint that is trained whole keeps the dtype of its weights, whatever it computes
    in here.

    Raises:
        InputError: a model that strata's layers cannot run, or an adapter that does not fit.
    """
    dtype = choose_dtype(config, checkpoint.stored_dtype, device)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager"}
    if config.base_storage == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": str(device)}
    refuse_unsupported(checkpoint.config)
    refuse_duplicates(checkpoint.path)
    build_rehearsed(checkpoint.config)  # refuses families whose layers do not fit, before any weight is read
    with _quiet_loading():
        base = _model_class(config).from_pretrained(
            config.model, trust_remote_code=False, use_safetensors=True, **_labels(config), **options
        )
    _keep_layers(base, checkpoint.config)
    if config.base_storage != "nf4":
        base = base.to(device)
    trained = _finish(config, base, dtype, device, stored_score(config, checkpoint))
    if config.full and config.dtype == "auto":
        trained.saved_dtype = checkpoint.stored_dtype
    return trained


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
    dtype = choose_dtype(config, checkpoint.stored_dtype, device)
    return make_skeleton(config, checkpoint.config, dtype, device, stored_score(config, checkpoint))


def make_skeleton(
    config: TrainConfig,
    model: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    score: StoredScore | None = None,
) -> TrainedModel:
    """A skeleton of a model that need not be there; see `open_skeleton`. `score`: its classifier, if any."""
    with init_empty_weights(include_buffers=False):
        base = _model_class(config).from_config(model, dtype=dtype, trust_remote_code=False)
    for module in base.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                # PEFT puts an adapter where its base weight is: one element, seen as the whole matrix.
                shared = torch.zeros((), dtype=weight.dtype, device=device).expand(weight.shape)
                module._parameters[name] = nn.Parameter(shared, requires_grad=False)
    return _finish(config, base, dtype, device, score)


def _keep_layers(base: Any, config: PreTrainedConfig) -> None:
    """Drops the layers of a loaded model that a config cut to its first layers does not have."""
    inner = base.get_submodule(base.base_model_prefix)
    num_layers = config.num_hidden_layers
    if len(inner.layers) == num_layers:
        return
    inner.layers = inner.layers[:num_layers]
    for name, value in cut_settings(vars(inner.config), num_layers).items():
        setattr(inner.config, name, value)


def _finish(
    config: TrainConfig, base: Any, dtype: torch.dtype, device: torch.device, score: StoredScore | None
) -> TrainedModel:
    """Puts the classifier and the adapter on a base model, and the engine's Decoder around its layers."""
    labels = label_names(config)
    if trains_classifier(config.task):
        width = score_width(config.task, base.config.hidden_size)
        bias = config.head_bias or brings_bias(config.adapter)
        made = make_score(config.seed, width, score, num_labels=len(labels) or 1, bias=bias)
        base.score = made.to(device)
    if labels:
        name_labels(base, labels)
    inner = base.get_submodule(base.base_model_prefix)
    if config.layers_norm == "no":
        inner.norm = nn.Identity()
    inner.config._attn_implementation = ATTENTION_NAME
    inner.embed_tokens.padding_idx = None  # a row like any other, as in the engine
    module: nn.Module = base
    if config.full:
        base.requires_grad_(True)
    else:
        module = _add_adapter(config, base)
    decoder = Decoder(config=inner.config, base=inner, layers=inner.layers)
    cut = None
    if config.layers is not None or config.layers_norm == "no":
        cut = TrainedCut(layers=len(inner.layers), layers_norm=config.layers_norm == "yes")
    trained = TrainedModel(
        module=module,
        base=base,
        decoder=decoder,
        head=HEADS[config.task],
        dtype=dtype,
        labels=labels,
        cut=cut,
    )
    trained.dropout_on(False)
    return trained


def _add_adapter(config: TrainConfig, base: Any) -> nn.Module:
    """PEFT's model around a base model: with a new adapter, or the one to start from."""
    if config.adapter is not None:
        return _open_adapter(config.adapter, base)
    classifies = trains_classifier(config.task)
    settings = lora_settings(
        config,
        target_modules(config, base),
        ["score"] if classifies else None,
        task_type="SEQ_CLS" if classifies else "CAUSAL_LM",
    )
    from peft import get_peft_model

    with seeded(config.seed):
        try:
            return get_peft_model(base, settings)
        except ValueError as error:
            raise InputError(f"--lora-targets: {str(error).splitlines()[0]}") from None


def _open_adapter(folder: Path, base: Any) -> nn.Module:
    from peft import PeftModel

    check_for_peft(folder, [name for name, _ in base.named_modules()])
    with one_line(f"--adapter: {folder}", "does not fit"):
        return PeftModel.from_pretrained(base, str(folder), is_trainable=True)


def _model_class(config: TrainConfig) -> Any:
    return AutoModelForSequenceClassification if trains_classifier(config.task) else AutoModelForCausalLM


def _labels(config: TrainConfig) -> dict[str, Any]:
    # The head is put on by hand, in float32 and of the width the task needs.
    return {"num_labels": 1, "ignore_mismatched_sizes": True} if trains_classifier(config.task) else {}
