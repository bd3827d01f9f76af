"""Which weight of transformers' model a GGUF tensor is, and what llama.cpp's converter did to it.

Both are asked of transformers' own loader: names by its mapping for a model of one block on the meta device,
and the order of rows and the offset by letting it process row numbers in place of weights. A mixture's
experts, stacked in the file, get the names that checkpoints store them by, one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from strata.engine.model_files.empty_model import empty_model

EXPERTS = re.compile(r"(blk\.\d+\.ffn_(gate|up|down)_exps)\.weight")
BLOCK = re.compile(r"^blk\.\d+\.")
LAYER = ".layers.0."


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversion:
    """How a stored tensor becomes the weight.

    Attributes:
        shape: of the weight.
        row_order: int64 [N], the stored row of every row; None where they are the same.
        offset: to add.
    """

    shape: tuple[int, ...]
    row_order: torch.Tensor | None
    offset: float


@dataclass(frozen=True, kw_only=True, eq=False)
class GgufNames:
    """Names and conversions of one architecture's tensors.

    Attributes:
        first_block: names of tensors without a block and of those of block 0 -> transformers' names.
        processor: transformers' processor of the architecture.
    """

    first_block: Mapping[str, str]
    processor: TensorProcessor

    def weight_name(self, tensor_name: str) -> str | None:
        """What transformers calls a tensor's weight; None when its model has no such weight."""
        found = self.first_block.get(BLOCK.sub("blk.0.", tensor_name))
        if found is None or not BLOCK.match(tensor_name):
            return found
        return found.replace(LAYER, f".layers.{tensor_name.split('.')[1]}.", 1)

    def expert_names(self, tensor_name: str, num_experts: int) -> list[str] | None:
        """Names of the matrices that a stacked tensor holds; None for any other tensor."""
        match = EXPERTS.fullmatch(tensor_name)
        merged = self.weight_name(match[1]) if match else None
        if match is None or merged is None:
            return None
        prefix = merged.partition(".experts.")[0]
        return [f"{prefix}.experts.{expert}.{match[2]}_proj.weight" for expert in range(num_experts)]

    def conversion(self, tensor_name: str, shape: tuple[int, ...]) -> Conversion:
        """What is to be done to a tensor of a shape.

        Raises:
            ValueError: rows that transformers' processor cannot cut into heads.
        """
        numbers = np.arange(shape[0], dtype=np.float64)
        offset = self.processor.process(np.zeros_like(numbers), tensor_name).weights
        order = self.processor.process(numbers, tensor_name).weights - offset
        same = np.array_equal(order.reshape(-1), numbers)
        return Conversion(
            # transformers makes a matrix of what llama.cpp made a vector; some files hold the matrix.
            shape=order.shape if len(shape) == 1 else shape,
            row_order=None if same else torch.from_numpy(order.astype(np.int64)),
            offset=float(offset.reshape(-1)[0]),
        )


def gguf_names(architecture: str, config: PreTrainedConfig) -> GgufNames:
    """The names for an architecture.

    Args:
        architecture: `general.architecture`.
        config: of the model.

    Raises:
        Exception: whatever transformers raises for a config that it cannot build.
    """
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    with empty_model():
        model = AutoModelForCausalLM.from_config(_with_one_layer(config), trust_remote_code=False)
    names = get_gguf_hf_weights_map(_Flat(model), processor)
    return GgufNames(first_block=names, processor=processor)


def _with_one_layer(config: PreTrainedConfig) -> PreTrainedConfig:
    values = config.to_dict() | {"num_hidden_layers": 1}
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][:1]
    return type(config).from_dict(values)


class _Flat:
    """A model as `get_gguf_hf_weights_map` looks at it, without the walk through thousands of modules."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.config = model.config
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """Of the model."""
        return self._model.state_dict()

    def named_children(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """None."""
        return iter(())
