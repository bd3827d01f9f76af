"""transformers' own decoder layers, run one at a time on packed tokens with prefix attention.

Data flow of a layer: hidden_states [T, D] -> the family's DecoderLayer (norms, projections, rotary embedding,
MLP or experts) whose attention is ours: keys and values of the T rows are appended to the carried ones, the
key space [K, C, H], and each tile of rows attends to its part of it. The module is built on the meta device;
a layer's weights are assigned before it runs. Knows nothing of files, questions or threads.
Independent check: transformers' own forward on every root-to-leaf path alone (tests/engine/test_parity.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import AttentionInterface, AutoModel, PreTrainedConfig

from strata.engine.model.attention import ATTENTION_NAME, AttentionCall, attend_prefix_tree
from strata.engine.model.families import (
    UnsupportedFamilyError,
    refuse_unsupported,
    refuse_what_transformers_cannot,
)
from strata.engine.model.fused.modules import fuse_modules, unfuse_modules
from strata.engine.model.int8_linears import SharedActivations, int8_names, quantize_linears
from strata.engine.model_files.empty_model import empty_model
from strata.engine.types import InputError
from strata.kernels.elementwise.functions import FusedFunctions

AttentionInterface.register(ATTENTION_NAME, attend_prefix_tree)

SCALED_BY_WIDTH = ("gemma", "gemma2", "vaultgemma")
"""Families whose embedding is scaled by the model around it in transformers 5.0, by its own module later."""


class _Zero(nn.Module):
    """Stands for a module whose result is not needed: zeros of the right width, which cost nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros(()).expand(*hidden_states.shape[:-1], self.width)


@dataclass(kw_only=True, eq=False)
class Decoder:
    """A model without weights: one layer module a layer, embedding, final norm and rotary tables.

    Every worker owns one, since assigning weights changes the modules.

    Attributes:
        fused: names of the module classes that compute by fused functions.
        unfused_because: why there are none, where that was looked into.
    """

    config: PreTrainedConfig
    base: nn.Module
    layers: Sequence[nn.Module]
    rope_tables: dict[str | None, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    activations: SharedActivations = field(default_factory=SharedActivations)
    fused: frozenset[str] = frozenset()
    unfused_because: str | None = None

    def layer_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a layer's dense weights."""
        named = {name: tuple(weight.shape) for name, weight in self.layers[layer].state_dict().items()}
        return {name: shape for name, shape in named.items() if not name.endswith(".weight_scale")}

    def buffer_names(self, layer: int) -> frozenset[str]:
        """Names of a layer's stored weights that no training changes, such as a router's correction."""
        parameters = dict(self.layers[layer].named_parameters())
        return frozenset(name for name in self.layers[layer].state_dict() if name not in parameters)

    def int8_names(self, layer: int) -> frozenset[str]:
        """Names of a layer's weights that are computed with in int8."""
        return int8_names(self.layers[layer])

    def quantize_linears(self, dense: Mapping[int, frozenset[str]] | None = None) -> None:
        """Makes the linear modules of all layers compute in int8, whose weights then are codes and scales.

        Args:
            dense: by layer number, paths of those that stay as they are.
        """
        for number, layer in enumerate(self.layers):
            quantize_linears(layer, self.activations, (dense or {}).get(number, frozenset()))

    def fuse(self, functions: FusedFunctions, device: torch.device, dtype: torch.dtype) -> None:
        """Makes modules compute by a device's fused functions, those for which it is the same."""
        self.fused = fuse_modules(self._fusible, functions, device, dtype)

    def unfuse(self, because: str) -> None:
        """Makes every module compute as its class does again, and be called by those that hold it."""
        unfuse_modules(self._fusible)
        self.fused, self.unfused_because = frozenset(), because

    @property
    def _fusible(self) -> tuple[nn.Module, ...]:
        return (*self.layers, self.base.get_submodule("norm"))

    def prepare_rope(self, max_position: int, device: torch.device, dtype: torch.dtype) -> None:
        """Makes tables of cos and sin [max_position + 1, H] for every kind of layer, on a device.

        Raises:
            UnsupportedFamilyError: the family has another kind of table.
        """
        rotary = self.base.get_submodule("rotary_emb").to(device)
        reference = torch.empty(1, dtype=dtype, device=device)
        position_ids = torch.arange(max_position + 1, device=device)[None]
        by_type = "layer_type" in inspect.signature(rotary.forward).parameters
        kinds: set[str | None] = set(self.config.layer_types) if by_type else {None}
        for kind in kinds:
            tables = rotary(reference, position_ids, kind) if by_type else rotary(reference, position_ids)
            if not isinstance(tables, tuple) or len(tables) != 2:
                raise UnsupportedFamilyError(f"{type(rotary).__name__} gives no tables of cos and sin")
            self.rope_tables[kind] = (tables[0][0], tables[1][0])

    def embed(self, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Embeddings [T, D] from a table [U, D] of the rows in use and row numbers [T] into it."""
        assign_weights(self.base.get_submodule("embed_tokens"), {"weight": table})
        return self.embed_rows(rows)

    def embed_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """What enters the first layer [T, D], of rows [T] of the table that the embedding has."""
        embedding = self.base.get_submodule("embed_tokens")
        embedded = embedding(rows)
        multiplier = getattr(self.config, "embedding_multiplier", None)
        if self.config.model_type in SCALED_BY_WIDTH and type(embedding) is nn.Embedding:
            multiplier = torch.tensor(self.config.hidden_size**0.5, dtype=embedded.dtype)
        return embedded if multiplier in (None, 1) else embedded * multiplier

    def normalize(self, weights: Mapping[str, torch.Tensor], hidden_states: torch.Tensor) -> torch.Tensor:
        """The final norm of hidden_states [S, D]."""
        norm = self.base.get_submodule("norm")
        assign_weights(norm, weights)
        return norm(hidden_states)

    def assign_layer(self, layer: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Puts a layer's weights into its module; they stay the caller's memory."""
        assign_weights(self.layers[layer], weights)

    def drop_layer(self, layer: int) -> None:
        """Lets go of a layer's weights."""
        self.activations.forget()
        for module in self.layers[layer].modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = nn.Parameter(weight.to("meta"), requires_grad=False)
        for name in self.buffer_names(layer):
            owner, leaf = _owner(self.layers[layer], name)
            owner._buffers[leaf] = owner.get_buffer(leaf).to("meta")

    def run_layer(
        self, layer: int, hidden_states: torch.Tensor, position_ids: torch.Tensor, call: AttentionCall
    ) -> torch.Tensor:
        """hidden_states [T, D] through a layer whose weights are assigned; leaves `call.key_values`."""
        kind = self._layer_type(layer)
        call.window = self.config.sliding_window if kind == "sliding_attention" else None
        cos, sin = self.rope_tables[kind if kind in self.rope_tables else None]
        output = self.layers[layer](
            hidden_states[None],
            attention_mask=None,
            position_ids=position_ids[None],
            position_embeddings=(
                cos[position_ids][None].to(hidden_states),
                sin[position_ids][None].to(hidden_states),
            ),
            attention_call=call,
        )
        return (output[0] if isinstance(output, tuple) else output)[0]

    def run_layer_keys(
        self, layer: int, hidden_states: torch.Tensor, position_ids: torch.Tensor, call: AttentionCall
    ) -> torch.Tensor:
        """The key space [2, K, C, H] alone, of a call in mode "keys"; queries and MLP cost nothing."""
        stubs = _stub_out(self.layers[layer], hidden_states.shape[1], self.config)
        try:
            self.run_layer(layer, hidden_states, position_ids, call)
        finally:
            for owner, name, original in stubs:
                setattr(owner, name, original)
        assert call.key_values is not None
        return call.key_values

    def _layer_type(self, layer: int) -> str | None:
        layer_types = getattr(self.config, "layer_types", None)
        return layer_types[layer] if layer_types else None


def build_decoder(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """The modules of a checkpoint's base model, weights on the meta device, buffers computed in a dtype.

    Raises:
        InputError: an architecture that is not a decoder with layers, embed_tokens, norm and rotary_emb, or a
            setting that strata does not have. Whether the layers compute what they should, `rehearse` tells.
    """
    refuse_unsupported(config)
    config._attn_implementation = ATTENTION_NAME
    with refuse_what_transformers_cannot(config), empty_model():
        base = AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)
    missing = [name for name in ("layers", "embed_tokens", "norm", "rotary_emb") if not hasattr(base, name)]
    if missing:
        raise InputError(
            f"model type {config.model_type!r} has no {missing[0]}; expected a decoder like Llama's"
        )
    for layer in base.layers:
        if not hasattr(getattr(layer, "self_attn", None), "o_proj"):
            raise InputError(
                f"model type {config.model_type!r}: {type(layer).__name__} has no self_attn.o_proj; expected "
                "a decoder like Llama's"
            )
    base.requires_grad_(False)
    # The padding row is a row like any other here, and a table of the rows in use may be shorter than its id.
    base.embed_tokens.padding_idx = None
    return Decoder(config=config, base=base.eval(), layers=base.layers)


def assign_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Makes tensors the parameters and stored buffers of a module, without copying.

    Raises:
        KeyError: a name the module does not have.
    """
    for name, tensor in weights.items():
        owner, leaf = _owner(module, name)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        elif leaf in owner._buffers:
            owner._buffers[leaf] = tensor
        else:
            raise KeyError(f"{type(module).__name__} has no parameter {name}")


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that a weight belongs to, and its name there."""
    owner_name, _, leaf = name.rpartition(".")
    return module.get_submodule(owner_name), leaf


def _stub_out(
    layer: nn.Module, width: int, config: PreTrainedConfig
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replaces what a keys-only pass does not need by zeros; returns what to put back."""
    attention = layer.get_submodule("self_attn")
    stubs: list[tuple[nn.Module, str, nn.Module]] = []
    if isinstance(getattr(attention, "q_proj", None), nn.Module):
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        stubs.append((attention, "q_proj", _Zero(config.num_attention_heads * head_dim)))
    stubs.append((attention, "o_proj", _Zero(width)))
    stubs.extend((layer, name, _Zero(width)) for name, _ in layer.named_children() if name in MLP_NAMES)
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in stubs]
    for owner, name, stub in stubs:
        setattr(owner, name, stub)
    return originals


MLP_NAMES = ("mlp", "block_sparse_moe", "feed_forward")
