"""How each stored weight of a layer becomes what is computed with. Knows no files and no devices."""

from __future__ import annotations

from collections import Counter

import torch

from strata.engine.model.decoder import Decoder
from strata.engine.weights.checkpoint import Checkpoint
from strata.engine.weights.formats.stored_weight import ChannelInt8Weight, PlainWeight


def _decode_weights(
    checkpoint: Checkpoint, decoder: Decoder, layer: int, dtype: torch.dtype
) -> dict[str, int]:
    """Weights of a layer by what has to be done to them."""
    counts: Counter[str] = Counter()
    int8_names, sources = decoder.int8_names(layer), checkpoint.layer_sources(layer)
    for name, shape in decoder.layer_shapes(layer).items():
        single, to_int8 = sources[name].single, name in int8_names
        formats = {weight.format_name for weight, _ in sources[name].parts}
        stays = isinstance(single, PlainWeight) and (to_int8 or single.dtype == dtype)
        if not stays and not (to_int8 and isinstance(single, ChannelInt8Weight)):
            counts[min(formats)] += torch.Size(shape).numel()
        if to_int8 and not isinstance(single, ChannelInt8Weight):
            counts["quantize"] += torch.Size(shape).numel()
    return dict(counts)
