"""A checkpoint ready to be swept: its modules, one set a worker, and the layers that stay in memory.

Here alone it is asked whether adapters are merged: a lone one is, as its layers are decoded; several are
applied side by side by the modules. Reads no weights by itself. Knows no prompts and no plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from strata.engine.adapters.adapter_file import check_shapes
from strata.engine.adapters.lora import Adapter, LoraWeights
from strata.engine.adapters.lora_linear import set_active, wrap_linears
from strata.engine.model.decoder import Decoder, build_decoder
from strata.engine.model.layer_loader import LayerLoader, Weights, make_loader
from strata.engine.model.rehearsal import rehearse, rehearse_fused
from strata.engine.model_files.config_file import CONFIG_FILE
from strata.engine.types import InputError
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.formats.stored_weight import ChannelInt8Weight, PlainWeight
from strata.engine.weights.tensor_reader import TensorReader
from strata.kernels.elementwise.registry import choose_functions, refusals

BASE_MEMBER = "base"


@dataclass(frozen=True, kw_only=True, eq=False)
class SideAdapter:
    """What is swept side by side: a member's name, and the LoRAs of each layer that the modules apply for it.

    `layers` is None where modules hold all there is: the base model, or a lone adapter, merged. `placed`
    keeps the LoRAs of a layer as a device computes with them, by layer and device: they are small beside the
    layer, and DoRA's gains are computed once for each of these objects.
    """

    name: str
    layers: tuple[Mapping[str, LoraWeights], ...] | None = None
    placed: dict[tuple[int, torch.device], Mapping[str, LoraWeights]] = field(default_factory=dict)

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Of all LoRAs on a device."""
        loras = [lora for layer in self.layers or () for lora in layer.values()]
        return sum(
            (lora.a.numel() + lora.b.numel()) * dtype.itemsize
            + (0 if lora.magnitude is None else 4 * lora.magnitude.numel())
            for lora in loras
        )

    def activate(self, decoder: Decoder, layer: int, device: torch.device, dtype: torch.dtype) -> None:
        """Makes a decoder's layer compute as this member."""
        if self.layers is None:
            return
        if (layer, device) not in self.placed:
            loras = self.layers[layer]
            self.placed[layer, device] = {path: lora.to(device, dtype) for path, lora in loras.items()}
        set_active(decoder.layers[layer], self.placed[layer, device])


@dataclass(kw_only=True, eq=False)
class OpenModel:
    """A checkpoint's modules on the meta device, and what of its weights stays from sweep to sweep.

    Attributes:
        checkpoint: where the weights are.
        dtype: of activations and dense weights.
        devices: one a worker; entries may repeat.
        decoders: one a worker, since assigning weights changes the modules.
        members: what is swept side by side.
        loader: reads and decodes layers.
        normalizes: the final norm is applied to what is read out.
        resident: by layer number, the weights on each device that stay for the next sweep.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    decoders: tuple[Decoder, ...]
    members: tuple[SideAdapter, ...]
    loader: LayerLoader
    normalizes: bool = True
    resident: dict[int, dict[torch.device, Weights]] = field(default_factory=dict)

    @property
    def adapter_bytes(self) -> int:
        """Of the adapters that are applied side by side, on each device."""
        return sum(member.num_bytes(self.dtype) for member in self.members)

    def release(self) -> None:
        """Lets go of layers and adapters that are kept from sweep to sweep."""
        self.resident.clear()
        for member in self.members:
            member.placed.clear()

    @property
    def reader(self) -> TensorReader:
        """What reads the checkpoint, and counts the bytes."""
        return self.loader.reader


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How a model is computed: on which devices, one a worker; the dtype of activations; linears in int8?"""

    devices: tuple[str, ...]
    dtype: torch.dtype
    int8: bool = False


def open_model(
    checkpoint: Checkpoint,
    adapters: tuple[Adapter, ...],
    computing: Computing,
    reader: TensorReader,
    *,
    with_base: bool = False,
) -> OpenModel:
    """Builds the modules.

    Args:
        checkpoint: the base model.
        adapters: each is a member; without any the base model is the only one.
        computing: on what, and in what.
        reader: reads the checkpoint.
        with_base: the base model is a member beside the adapters, the last.

    Raises:
        InputError: a family that strata cannot run, weights that are missing or of another shape, or adapters
            that do not fit.
    """
    devices = tuple(torch.device(name) for name in computing.devices)
    decoders = tuple(_build(checkpoint, computing, device) for device in devices)
    shapes = [decoders[0].layer_shapes(layer) for layer in range(checkpoint.num_layers)]
    for adapter in adapters:
        for layer, layer_shapes in enumerate(shapes):
            check_shapes(adapter, layer_shapes, layer_index=layer)
    if len(adapters) > 1 or (adapters and with_base):
        merged: tuple[Adapter, ...] = ()
        for decoder in decoders:
            for module in decoder.layers:
                wrap_linears(module, {path for adapter in adapters for path in adapter.module_paths})
        members = tuple(SideAdapter(name=adapter.name, layers=adapter.layers) for adapter in adapters)
        if with_base:
            members += (SideAdapter(name=BASE_MEMBER, layers=({},) * checkpoint.num_layers),)
    else:
        merged = adapters
        members = (SideAdapter(name=adapters[0].name if adapters else BASE_MEMBER),)
    loader = make_loader(checkpoint, decoders[0], computing.dtype, reader, merged)
    return OpenModel(
        checkpoint=checkpoint,
        dtype=computing.dtype,
        devices=devices,
        decoders=decoders,
        members=members,
        loader=loader,
    )


def _build(checkpoint: Checkpoint, computing: Computing, device: torch.device) -> Decoder:
    functions = choose_functions(device, computing.dtype)
    try:
        decoder = build_decoder(checkpoint.config, computing.dtype)
        if functions is None:
            rehearse(decoder)
            decoder.unfused_because = "; ".join(refusals(device, computing.dtype))
        else:
            decoder.unfused_because = rehearse_fused(decoder, functions, device, computing.dtype)
    except InputError as error:
        where = checkpoint.path / CONFIG_FILE if checkpoint.path.is_dir() else checkpoint.path
        raise InputError(f"{where}: {error}") from None
    if computing.int8:
        decoder.quantize_linears(kept_out_of_int8(checkpoint))
    return decoder


def kept_out_of_int8(checkpoint: Checkpoint) -> dict[int, frozenset[str]]:
    """Paths, by layer, of the modules that a checkpoint in int8 stores plain: whoever packed it had a reason.

    Of a checkpoint without int8 weights, none.
    """
    sources = [checkpoint.layer_sources(layer) for layer in range(checkpoint.num_layers)]
    singles = [{name: source.single for name, source in layer.items()} for layer in sources]
    if not any(isinstance(weight, ChannelInt8Weight) for layer in singles for weight in layer.values()):
        return {}
    return {
        number: frozenset(
            name.removesuffix(".weight") for name, weight in layer.items() if isinstance(weight, PlainWeight)
        )
        for number, layer in enumerate(singles)
    }
