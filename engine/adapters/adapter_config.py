"""What an adapter_config.json of PEFT and the names of its tensors mean. Knows nothing of tensors' contents.

The meaning is that of PEFT 0.18 to 0.21. What strata does not apply, or does not know, is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from strata.engine.types import InputError

CONFIG_NAME = "adapter_config.json"

# LoraConfig's defaults.
_DEFAULT_RANK = 8
_DEFAULT_ALPHA = 8
# Settings that change the forward pass in a way strata does not compute, and what to tell the user.
_REFUSED_SETTINGS = {
    "alora_invocation_tokens": "activated LoRA (aLoRA) applies to some tokens only",
    "arrow_config": "Arrow routes every token to an adapter of its own",
    "fan_in_fan_out": "only weights stored as [out, in] are adapted",
    "kasa_config": "KaSA truncates the base weights",
    "layer_replication": "strata runs the layers as the checkpoint stores them",
    "lora_bias": "LoRA with a bias is not applied",
    "megatron_config": "Megatron's parallel layers are not supported",
    "monteclora_config": "MonteCLoRA is not plain LoRA",
    "target_parameters": "LoRA on bare parameters (fused expert weights) is not applied",
    "trainable_token_indices": "strata does not change embeddings",
    "use_bdlora": "BD-LoRA is not plain LoRA",
    "use_qalora": "QA-LoRA is not plain LoRA",
    "velora_config": "VeLoRA is not plain LoRA",
}
# Settings that are applied, or that only matter when training or choosing modules.
_KNOWN_SETTINGS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)
# Initialisations that subtract the adapter's start from the base weights: PEFT repeats that at every load.
_BASE_CHANGING_INITS = ("pissa", "corda", "olora", "loftq", "lora_ga")
_HEADS = ("score", "classifier")
_VOCABULARY_MODULES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")

_PREFIX = "base_model.model."
_LORA_SUFFIX = re.compile(
    r"^(?P<module>.+)\.(?:lora_(?P<kind>[AB])(?:\.default)?\.weight"
    r"|lora_magnitude_vector(?:\.default)?(?:\.weight)?)$"
)
_LAYER = re.compile(
    r"^(?:(?:model|language_model|transformer|gpt_neox|decoder)\.)*(?:layers|h)\.(?P<index>\d+)\.(?P<path>.+)$"
)
_SCORE = re.compile(r"^(?:score|classifier)(?:\.modules_to_save)?(?:\.default)?\.(?P<kind>weight|bias)$")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The settings of a LoRA adapter that decide what it computes.

    The patterns map a regular expression for the end of a module's full name (model.layers.3.mlp.up_proj) to
    its rank and alpha; the first that matches wins, as in PEFT. `declares_head` says that a classification
    head was trained along.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    declares_head: bool = False

    def rank_of(self, module_name: str) -> int:
        """Rank r of the module of that full name."""
        return _first_match(self.rank_pattern, module_name, self.rank)

    def scaling_of(self, module_name: str) -> float:
        """What B A is multiplied with: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023)."""
        alpha = _first_match(self.alpha_pattern, module_name, self.alpha)
        rank = self.rank_of(module_name)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


@dataclass(frozen=True, kw_only=True)
class TensorRole:
    """What one tensor of an adapter file is: part of a layer's LoRA, or the classification head.

    `module_name` is the name that patterns match, `path` the module inside decoder layer `layer_index`; for a
    score both are empty.
    """

    kind: Literal["a", "b", "magnitude", "score", "score_bias"]
    module_name: str = ""
    layer_index: int = -1
    path: str = ""


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Reads and validates the adapter_config.json of an adapter folder.

    Raises:
        InputError: the file is missing or malformed, or a setting is not supported.
    """
    file = folder / CONFIG_NAME
    settings = _read_json_object(file)
    _refuse_settings(file, settings)
    return AdapterConfig(
        rank=_read_rank(file, "r", settings.get("r", _DEFAULT_RANK)),
        alpha=_read_alpha(file, "lora_alpha", settings.get("lora_alpha", _DEFAULT_ALPHA)),
        use_rslora=_read_flag(file, settings, "use_rslora"),
        use_dora=_read_flag(file, settings, "use_dora"),
        rank_pattern={
            key: _read_rank(file, f"rank_pattern[{key!r}]", value)
            for key, value in _read_pattern(file, settings, "rank_pattern").items()
        },
        alpha_pattern={
            key: _read_alpha(file, f"alpha_pattern[{key!r}]", value)
            for key, value in _read_pattern(file, settings, "alpha_pattern").items()
        },
        declares_head=_declares_head(settings),
    )


def parse_tensor_name(file: Path, name: str) -> TensorRole:
    """Tells what the tensor `name` of an adapter file is.

    Raises:
        InputError: it is not a LoRA tensor of a decoder layer or a score head; the message says why.
    """
    full_name = name.removeprefix(_PREFIX)
    lora = _LORA_SUFFIX.match(full_name)
    layer = _LAYER.match(lora["module"]) if lora else None
    score = _SCORE.match(full_name)
    if not name.startswith(_PREFIX) or (score is None and not _is_plain_module(layer)):
        raise InputError(f"{file}: tensor {name!r} is not supported: {_explain_tensor(name)}")
    if score is not None:
        return TensorRole(kind="score" if score["kind"] == "weight" else "score_bias")
    assert lora is not None
    assert layer is not None
    kind: Literal["a", "b", "magnitude"] = "magnitude"
    if lora["kind"] is not None:
        kind = "a" if lora["kind"] == "A" else "b"
    return TensorRole(
        kind=kind, module_name=lora["module"], layer_index=int(layer["index"]), path=layer["path"]
    )


def _is_plain_module(layer: re.Match[str] | None) -> bool:
    return layer is not None and not {"experts", "base_layer"}.intersection(layer["path"].split("."))


def _explain_tensor(name: str) -> str:
    parts = name.split(".")
    if any(part in parts for part in _VOCABULARY_MODULES) or "lora_embedding" in name:
        return "strata applies no adapter to the embeddings or the vocabulary projection"
    if parts[-1] == "bias":
        return "strata applies no trained biases (train with bias='none' and lora_bias=False)"
    if "experts" in parts or "base_layer" in parts:
        return "strata applies no LoRA to the expert weights of a mixture of experts"
    return (
        f"expected {_PREFIX}[model.]layers.N.MODULE.lora_A.weight, .lora_B.weight or .lora_magnitude_vector, "
        f"or {_PREFIX}score.weight and .bias"
    )


def _read_json_object(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{file}: cannot be read ({reason}); expected an adapter saved by PEFT") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON in UTF-8 ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{file}: holds a {type(settings).__name__}, expected a JSON object")
    return settings


def _refuse_settings(file: Path, settings: dict[str, Any]) -> None:
    peft_type = settings.get("peft_type")
    if peft_type != "LORA":
        raise InputError(f"{file}: peft_type is {peft_type!r}, only 'LORA' is supported")
    for name, reason in _REFUSED_SETTINGS.items():
        if settings.get(name):
            raise InputError(f"{file}: {name} = {settings[name]!r} is not supported: {reason}")
    init = str(settings.get("init_lora_weights", True)).lower()
    if init.startswith(_BASE_CHANGING_INITS):
        raise InputError(
            f"{file}: init_lora_weights = {init!r} means that the adapter fits changed base weights; "
            "convert it with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    _refuse_saved_modules(file, settings.get("modules_to_save") or ())
    unknown = [name for name in settings if name not in _KNOWN_SETTINGS and name not in _REFUSED_SETTINGS]
    for name in unknown:
        if settings[name]:
            raise InputError(f"{file}: setting {name!r} = {settings[name]!r} is not known to strata")


def _refuse_saved_modules(file: Path, modules: Iterable[str]) -> None:
    for module in modules:
        if module.split(".")[-1] in _VOCABULARY_MODULES:
            raise InputError(
                f"{file}: modules_to_save names {module!r}; "
                "only a classification head ('score') can be replaced"
            )


def _declares_head(settings: Mapping[str, Any]) -> bool:
    saved = settings.get("modules_to_save") or ()
    return settings.get("task_type") == "SEQ_CLS" or any(name.split(".")[-1] in _HEADS for name in saved)


def _read_flag(file: Path, settings: dict[str, Any], name: str) -> bool:
    value = settings.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"{file}: {name} = {value!r}, expected true or false")
    return value


def _read_rank(file: Path, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{file}: {name} = {value!r}, expected a positive integer")
    return value


def _read_alpha(file: Path, name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{file}: {name} = {value!r}, expected a number")
    return float(value)


def _read_pattern(file: Path, settings: dict[str, Any], name: str) -> dict[str, Any]:
    pattern = settings.get(name) or {}
    if not isinstance(pattern, dict):
        raise InputError(f"{file}: {name} = {pattern!r}, expected an object of module patterns")
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise InputError(f"{file}: {name} holds {key!r}, not a regular expression ({error})") from error
    return pattern


def _first_match(pattern: Mapping[str, Any], module_name: str, default: Any) -> Any:
    # Source: peft.utils.other.get_pattern_key.
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module_name):
            return value
    return default
