"""Which parameter of transformers' own model each stored tensor becomes. Knows no files and reads no weights.

Data flow: config -> the model class that transformers would load (language model, multimodal
wrapper), built without memory for weights -> its conversion tables, parameter names and tied
weights -> `place`: the name of a stored tensor -> the name of a parameter. Names inside strata are those of
the decoder ("layers.3.mlp.up_proj.weight", "embed_tokens.weight", "norm.weight") and of the heads
("lm_head.weight", "score.weight").
Independent check: transformers' own load of the folder (tests/engine/weights/test_transformers_names.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from strata.engine.model_files.empty_model import empty_model
from strata.engine.types import InputError

HEAD_WEIGHTS = ("lm_head.weight", "lm_head.bias", "score.weight", "score.bias")
DECODER_PARTS = ("layers", "embed_tokens", "norm")
COMPUTED_BUFFERS = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|masked_bias$")
"""What old checkpoints store and every model computes anew."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where a stored tensor goes.

    Attributes:
        name: strata's name of the weight; None for one of another part of the model, such as a vision tower.
        parameter: transformers' name of it.
        converter: what makes the weight from this and other tensors; None when it is the weight.
        pattern: by which the converter knows the tensor.
        is_known: transformers' model has such a parameter.
    """

    name: str | None
    parameter: str
    converter: WeightConverter | None
    pattern: str
    is_known: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelNames:
    """The names in one model class of transformers.

    Attributes:
        decoder: path of the decoder, ends in a dot, or empty.
        head: path of the vocabulary projection, ends in a dot; None without one.
        parameters: all parameters and stored buffers.
        ties: parameter -> the parameter that it shares memory with.
        ignored: patterns of tensors that transformers leaves unused without a word.
        base_prefix: what a base model's names lack, or have too much.
        renamings: applied one after the other.
        converters: of which the first that fits makes a parameter of several tensors.
    """

    decoder: str
    head: str | None
    parameters: dict[str, Any]
    ties: Mapping[str, str]
    ignored: tuple[re.Pattern[str], ...]
    base_prefix: str
    renamings: tuple[WeightRenaming, ...]
    converters: tuple[WeightConverter, ...]

    def place(self, stored: str) -> Placed:
        """Where a tensor of this stored name goes, by the rules of transformers' loading."""
        parameter, pattern = self._rename(stored, self.renamings, self.converters)
        if parameter not in self.parameters and stored in self.parameters:
            parameter, pattern = self._rename(stored, (), ())
        converter = next((each for each in self.converters if pattern in each.source_patterns), None)
        return Placed(
            name=self._own_name(parameter),
            parameter=parameter,
            converter=converter,
            pattern=pattern or "",
            is_known=parameter in self.parameters,
        )

    def is_ignored(self, placed: Placed) -> bool:
        """Whether transformers says nothing of a tensor that it does not use."""
        return any(pattern.search(placed.parameter) for pattern in self.ignored)

    @property
    def is_tied(self) -> bool:
        """The vocabulary projection and the input embedding share their memory, unless both are stored."""
        if self.head is None:
            return False
        pair = {f"{self.head}weight", f"{self.decoder}embed_tokens.weight"}
        return any({target, source} == pair for target, source in self.ties.items())

    def _rename(
        self, stored: str, renamings: Iterable[WeightRenaming], converters: Iterable[WeightConverter]
    ) -> tuple[str, str | None]:
        return rename_source_key(stored, list(renamings), list(converters), self.base_prefix, self.parameters)

    def _own_name(self, parameter: str) -> str | None:
        if self.head is not None and parameter.startswith(self.head):
            return f"lm_head.{parameter.removeprefix(self.head)}"
        if parameter in HEAD_WEIGHTS:
            return parameter
        return parameter.removeprefix(self.decoder) if parameter.startswith(self.decoder) else None


_known: dict[str, ModelNames] = {}


def read_model_names(config: PreTrainedConfig) -> ModelNames:
    """The names in the model that transformers would load for a config; made once a config and process.

    Raises:
        InputError: transformers cannot build it.
    """
    key = f"{type(config).__name__} {config.to_json_string(use_diff=False)}"
    if key not in _known:
        _known[key] = _read_names(_build(config))
    return _known[key]


def _read_names(model: PreTrainedModel) -> ModelNames:
    path = _decoder_path(model)
    output = model.get_output_embeddings()
    conversions = get_model_conversion_mapping(model)
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    return ModelNames(
        decoder=path and f"{path}.",
        head=next((f"{name}." for name, module in model.named_modules() if module is output), None),
        parameters=model.state_dict(),
        ties=dict(model.all_tied_weights_keys),
        ignored=(COMPUTED_BUFFERS, *map(re.compile, ignored)),
        base_prefix=model.base_model_prefix,
        renamings=tuple(entry for entry in conversions if isinstance(entry, WeightRenaming)),
        converters=tuple(entry for entry in conversions if isinstance(entry, WeightConverter)),
    )


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    """The whole model on the meta device."""
    try:
        with empty_model():
            return next(iter(_classes(config)))(copy.deepcopy(config))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        told = f"model type {config.model_type!r}: transformers cannot build it: {reason}"
        raise InputError(told) from None


def _classes(config: PreTrainedConfig) -> Iterator[type[PreTrainedModel]]:
    """Model classes of a config, the one that transformers' users load first.

    Raises:
        InputError: after the last.
    """
    for mapping in (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        transformers.MODEL_MAPPING,
    ):
        if type(config) in mapping:
            found: Any = mapping[type(config)]
            yield found[0] if isinstance(found, tuple) else found
    raise InputError(f"model type {config.model_type!r} is no language model that transformers knows")


def _decoder_path(model: PreTrainedModel) -> str:
    """Path of the decoder in a model: what it names itself, else the first module that looks like one."""
    found = {name: module for name, module in model.named_modules() if _is_decoder(module)}
    own = model.get_decoder()
    return next((name for name, module in found.items() if module is own), next(iter(found), ""))


def _is_decoder(module: nn.Module) -> bool:
    return all(hasattr(module, part) for part in DECODER_PARTS)
