"""What an adapter_config.json of PEFT and the names of its tensors mean. Knows nothing of tensors' contents.

The meaning is that of PEFT 0.18 to 0.21. What strata does not apply, or does not know, is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from strata.engine.adapters.module_patterns import ModulePatterns, check_matching
from strata.engine.json_files import Schema, check_schema, read_json_object, shown
from strata.engine.types import InputError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 16 << 20

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
    r"^(?:(?:model|language_model|transformer|gpt_neox|decoder)\.)*(?:layers|h)\.(?P<index>[0-9]{1,6})\."
    r"(?P<path>.+)$"
)
_SCORE = re.compile(r"^(?:score|classifier)(?:\.modules_to_save)?(?:\.default)?\.(?P<kind>weight|bias)$")


Rank = Annotated[int, Field(ge=1, le=1_000_000)]
Names = list[str] | str | None


class AdapterSettings(Schema):
    """adapter_config.json: the keys that are relied on, with LoraConfig's defaults."""

    peft_type: str
    r: Rank = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    layers_pattern: Names = None
    modules_to_save: list[str] | None = None
    task_type: str | None = None
    init_lora_weights: bool | str | None = True
    megatron_config: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The settings of a LoRA adapter that decide what it computes.

    The patterns give rank and alpha of modules by their full name (model.layers.3.mlp.up_proj).
    `declares_head` says that a classification head was trained along.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: ModulePatterns[int] = field(default_factory=lambda: ModulePatterns({}))
    alpha_pattern: ModulePatterns[float] = field(default_factory=lambda: ModulePatterns({}))
    declares_head: bool = False

    def rank_of(self, module_name: str) -> int:
        """Rank r of the module of that full name."""
        return self.rank_pattern.value_of(module_name, self.rank)

    def scaling_of(self, module_name: str) -> float:
        """What B A is multiplied with: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023)."""
        alpha = self.alpha_pattern.value_of(module_name, self.alpha)
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
    settings = _read_settings(file)
    _refuse_settings(file, settings)
    return AdapterConfig(
        rank=settings.r,
        alpha=settings.lora_alpha,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        rank_pattern=ModulePatterns(settings.rank_pattern or {}, f"{file}: rank_pattern"),
        alpha_pattern=ModulePatterns(settings.alpha_pattern or {}, f"{file}: alpha_pattern"),
        declares_head=_declares_head(settings),
    )


def check_for_peft(folder: Path, module_names: Sequence[str]) -> None:
    """Checks an adapter folder that PEFT itself will load: it trusts what the files say.

    PEFT would import a module that the settings name, match regular expressions without end, and unpickle
    weights where there are no safetensors.

    Args:
        folder: of the adapter.
        module_names: of the model, which PEFT will match.

    Raises:
        InputError: a file is missing or malformed, or asks for what is not done.
    """
    file = folder / CONFIG_NAME
    settings = _read_settings(file)
    if not (folder / WEIGHTS_NAME).is_file():
        raise InputError(f"{folder}: no {WEIGHTS_NAME}; expected a PEFT adapter folder")
    if settings.megatron_config:
        raise InputError(f"{file}: megatron_config is not supported: {_REFUSED_SETTINGS['megatron_config']}")
    for key, patterns in _patterns(settings):
        check_matching(patterns, module_names, f"{file}: {key}")


def _patterns(settings: AdapterSettings) -> Iterator[tuple[str, list[str]]]:
    """Regular expressions by the setting that holds them; `all-linear` is one too."""
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        # What a list holds are names.
        value = getattr(settings, key)
        yield key, [value] if isinstance(value, str) else []
    yield "modules_to_save", settings.modules_to_save or []
    yield "rank_pattern", list(settings.rank_pattern or {})
    yield "alpha_pattern", list(settings.alpha_pattern or {})


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
        raise InputError(f"{file}: tensor {shown(name)} is not supported: {_explain_tensor(name)}")
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


def _read_settings(file: Path) -> AdapterSettings:
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected an adapter saved by PEFT")
    settings = check_schema(AdapterSettings, read_json_object(file, max_bytes=MAX_CONFIG_BYTES), str(file))
    if settings.peft_type != "LORA":
        raise InputError(f"{file}: peft_type is {shown(settings.peft_type)}, only 'LORA' is supported")
    return settings


def _refuse_settings(file: Path, checked: AdapterSettings) -> None:
    settings = checked.model_dump()
    for name, reason in _REFUSED_SETTINGS.items():
        if settings.get(name):
            raise InputError(f"{file}: {name} = {shown(settings[name])} is not supported: {reason}")
    init = str(checked.init_lora_weights).lower()
    if init.startswith(_BASE_CHANGING_INITS):
        raise InputError(
            f"{file}: init_lora_weights = {shown(init)} means that the adapter fits changed base weights; "
            "convert it with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    _refuse_saved_modules(file, checked.modules_to_save or ())
    unknown = [name for name in settings if name not in _KNOWN_SETTINGS and name not in _REFUSED_SETTINGS]
    for name in unknown:
        if settings[name]:
            raise InputError(
                f"{file}: setting {shown(name)} = {shown(settings[name])} is not known to strata"
            )


def _refuse_saved_modules(file: Path, modules: Iterable[str]) -> None:
    for module in modules:
        if module.split(".")[-1] in _VOCABULARY_MODULES:
            raise InputError(
                f"{file}: modules_to_save names {shown(module)}; "
                "only a classification head ('score') can be replaced"
            )


def _declares_head(settings: AdapterSettings) -> bool:
    saved = settings.modules_to_save or ()
    return settings.task_type == "SEQ_CLS" or any(name.split(".")[-1] in _HEADS for name in saved)
