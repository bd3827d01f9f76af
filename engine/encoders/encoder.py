"""Encoders with a multiple-choice head: which checkpoints are one, their windows, how they are loaded.

Knows no question. The head is what stands on the encoder's first token: pooler (where there is one) and
classifier, one logit a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForMultipleChoice, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES

from strata.engine.adapters.adapter_config import CONFIG_NAME, WEIGHTS_NAME, check_for_peft
from strata.engine.model_files.config_file import CONFIG_FILE, read_config_json
from strata.engine.model_files.library_errors import one_line
from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import read_config, weight_files
from strata.engine.weights.safetensors_file import read_header
from strata.engine.weights.shards import read_stored_tensors, refuse_duplicates

FAMILIES = (
    "albert",
    "bert",
    "camembert",
    "data2vec-text",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "luke",
    "megatron-bert",
    "modernbert",
    "mpnet",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "squeezebert",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xlnet",
)
"""Model types whose scores do not change with padding; those of the other types with a multiple-choice head
in transformers do (convolutions, Fourier mixing, pooled or sampled attention), or need more inputs."""
RELATIVE_FAMILIES = ("deberta-v2", "modernbert", "xlnet")
"""Model types without a table of positions, which can read beyond what they were trained at."""
USUAL_WINDOW_TOKENS = 512
"""Where the config names none (XLNet)."""
ENCODERS_EXPECTED = "expected one such as DeBERTa, BERT, RoBERTa, ELECTRA, ModernBERT"


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """What is known of an encoder without its weights.

    Attributes:
        window_tokens: longest row it was made for.
        has_position_table: longer rows than the window cannot be computed at all.
        reads_token_types: first and second sequence are told apart by token type.
        num_weights: all of them.
        num_linear_weights: those of matrices that every token goes through.
        num_layers: of the encoder.
        hidden_size: D.
    """

    window_tokens: int
    has_position_table: bool
    reads_token_types: bool
    num_weights: int
    num_linear_weights: int
    num_layers: int
    hidden_size: int

    def flops(self, length_tokens: int) -> float:
        """FLOP of one row: two a weight and token, and attention's two products (DeBERTa has more)."""
        linear = 2.0 * self.num_linear_weights * length_tokens
        return linear + 4.0 * self.num_layers * self.hidden_size * length_tokens**2


def is_encoder(path: Path) -> bool:
    """Whether a folder's config.json is an encoder's; False when it cannot be read."""
    try:
        config = read_config_json(path)
    except InputError:
        return False
    names = config.get("architectures") or []
    by_name = any(str(name).endswith("ForMultipleChoice") for name in names)
    return by_name or config.get("model_type") in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES


def read_encoder_config(path: Path) -> PreTrainedConfig:
    """The config of an encoder that can be scored and trained here.

    Raises:
        InputError: no such folder, no config that transformers reads, another kind of model, or quantised.
    """
    config = read_config(path)
    if config.model_type not in FAMILIES:
        known = config.model_type in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES
        why = "whose scores change with padding" if known else "which has no multiple-choice head"
        raise InputError(
            f"{path / CONFIG_FILE}: model_type {config.model_type!r}, {why}; {ENCODERS_EXPECTED}"
        )
    if getattr(config, "quantization_config", None):
        raise InputError(f"{path / CONFIG_FILE}: a quantised encoder; expected plain weights")
    return config


def stored_dtype(path: Path) -> torch.dtype:
    """Dtype of the checkpoint's largest tensor.

    Raises:
        InputError: no safetensors, or a truncated file.
    """
    return max(read_stored_tensors(path).values(), key=lambda tensor: tensor.num_bytes).floating_dtype


def first_weights_file(path: Path) -> Path:
    """A file of the checkpoint, whose disk counts.

    Raises:
        InputError: no safetensors.
    """
    return weight_files(path)[0]


def measure_encoder(config: PreTrainedConfig) -> EncoderShape:
    """Shape and window of the model that a config describes; takes no memory.

    Raises:
        InputError: transformers cannot build it.
    """
    where = Path(config.name_or_path or "") / CONFIG_FILE
    with one_line(where, "transformers cannot build it"), torch.device("meta"):
        model = AutoModelForMultipleChoice.from_config(config, trust_remote_code=False)
    head = head_modules(model)
    linear = [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_within(name, head)
    ]
    type_vocabulary = getattr(config, "type_vocab_size", None)
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    window, has_table = _window(config, model)
    return EncoderShape(
        window_tokens=window,
        has_position_table=has_table,
        reads_token_types=takes_types and (type_vocabulary is None or type_vocabulary > 1),
        num_weights=sum(weight.numel() for weight in model.parameters()),
        num_linear_weights=sum(linear),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
    )


def _window(config: PreTrainedConfig, model: nn.Module) -> tuple[int, bool]:
    """The window, and whether a table of positions ends there; RoBERTa's begins after the padding's place."""
    named = getattr(config, "max_position_embeddings", None)
    if not isinstance(named, int) or named < 1:
        return USUAL_WINDOW_TOKENS, False
    if config.model_type in RELATIVE_FAMILIES and not getattr(config, "position_biased_input", False):
        return named, False
    tables = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith(".position_embeddings") and "entity" not in name
    ]
    return min([named, *tables]), True


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Full names of the modules that make the choice: all beside the encoder, and its pooler."""
    base = model.base_model
    names = {id(module): name for name, module in model.named_modules()}
    beside = [child for child in model.children() if child is not base]
    pooler = getattr(base, "pooler", None)
    found = [*([pooler] if isinstance(pooler, nn.Module) else []), *beside]
    return tuple(names[id(module)] for module in found if any(True for _ in module.parameters()))


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter or module of that name is one of the modules or inside of one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def load_encoder(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Loads an encoder with a multiple-choice head on the CPU, dropout off.

    Weights that the checkpoint lacks are drawn from torch's generator.

    Args:
        path: the checkpoint.
        dtype: of the weights and of computing.

    Returns:
        The model, and the names of the weights that the checkpoint lacks.

    Raises:
        InputError: weights are missing from or do not fit the encoder.
    """
    refuse_duplicates(path)
    with one_line(path, "transformers cannot load it"):
        model, info = AutoModelForMultipleChoice.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = tuple(sorted(info["missing_keys"]))
    head = head_modules(model)
    absent = [name for name in missing if not is_within(name, head)]
    if absent:
        raise InputError(f"{path}: the checkpoint holds no tensor for {absent[0]}")
    return model.eval(), missing


def add_adapters(
    model: PreTrainedModel, paths: Sequence[Path], missing: Sequence[str], *, trainable: bool = False
) -> Any:
    """Puts PEFT adapters on an encoder; the first is active, the others are reached with `set_adapter`.

    Args:
        model: from `load_encoder`; it is changed.
        paths: at least one PEFT folder; the adapters are called by `adapter_name`.
        missing: weights of the head that the checkpoint lacks, which every adapter has to bring.
        trainable: go on training the adapter.

    Raises:
        InputError: PEFT is not installed, or an adapter that does not fit or brings no head.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError(
            '--adapter: an encoder\'s needs peft; expected pip install "strata-score[adapters]"'
        ) from None
    module_names = [name for name, _ in model.named_modules()]
    for path in paths:
        _check_adapter(path, missing, module_names)
    adapted: Any = None
    for number, path in enumerate(paths):
        with one_line(f"--adapter: {path}", "does not fit"):
            if adapted is None:
                adapted = PeftModel.from_pretrained(
                    model, str(path), adapter_name=adapter_name(number), is_trainable=trainable
                )
            else:
                adapted.load_adapter(str(path), adapter_name=adapter_name(number))
    return adapted if trainable else adapted.eval()


def adapter_name(number: int) -> str:
    """What PEFT calls the adapter at a place; the first one has PEFT's own default name."""
    return str(number) if number else "default"


def _check_adapter(path: Path, missing: Sequence[str], module_names: Sequence[str]) -> None:
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            raise InputError(f"--adapter: {path}: no {name}; expected a PEFT adapter folder")
    check_for_peft(path, module_names)
    held = read_header(path / WEIGHTS_NAME)
    for name in missing:
        if not any(key.removeprefix("base_model.model.") == name for key in held):
            raise InputError(
                f"--adapter: {path}: holds no tensor for {name}, nor does the checkpoint; "
                "expected a trained choice head in one of them"
            )
