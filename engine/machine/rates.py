"""How fast a machine does each kind of work: what a plan is made with. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

NOMINAL_HOST_TO_DEVICE = 12e9
"""Bytes a second over PCIe 3.0 x16 as usually reached with pinned memory; used in predictions only."""
NOMINAL_HOST_BYTES_PER_S = 8e9
NOMINAL_DECODE_WEIGHTS_PER_S = {"cpu": 0.5e9, "cuda": 30e9}
GEMM_EFFICIENCY = 0.95
"""Share of the measured GEMM rate that a layer's GEMMs reach between the other operations."""
ATTENTION_EFFICIENCY = 0.4
"""Useful attention FLOP/s as a share of the GEMM rate."""
BYTES_PER_ELEMENT = 19.0
"""Of a card's memory, moved by norms, rotary embedding, gates, residuals and keys for each of the (D + F)
elements of a token: 0.50 ms for 7,450 tokens of Llama 2 7B on an H200 that copies 4.3 TB/s."""
MEASURED_QUICKLY = "measured quickly"
TWO_LANES_GAIN = 1.1
"""Speed of two lanes on a CPU of two threads over that of one, before it was measured there: 1.0 to 1.9 were
seen, the most where others share the processor. Threads of one product wait for each other, lanes do not."""


@dataclass(frozen=True, kw_only=True)
class LayerRates:
    """What a decoder layer reaches on one worker's device; seconds of a layer are a sum of these parts.

    Attributes:
        linear_flop_per_s: of its matrices.
        attention_flop_per_s: of the two products of attention.
        softmax_scores_per_s: scores (query head, row, key) a second, for all that is not those products.
        elements_per_s: norms, rotary embedding, activation function: (D + F) elements a token.
        weights_bytes_per_s: how fast a micro-batch passes over the layer's weights, beside computing.
        call_s: of a micro-batch, whatever its size: added to the rest on a CPU; the host's, beside a card's.
        masked_keys: keys a row that its tile computes and masks.
    """

    linear_flop_per_s: float
    attention_flop_per_s: float
    softmax_scores_per_s: float = math.inf
    elements_per_s: float = math.inf
    weights_bytes_per_s: float = math.inf
    call_s: float = 0.0
    masked_keys: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in asdict(self).items():
            if not (rate >= 0 if name in ("call_s", "masked_keys") else rate > 0):
                raise ValueError(f"{name} is {rate}; expected a positive number")

    def shared_by(self, num_workers: float) -> LayerRates:
        """What each of several workers reaches that share the device, where each has that part of it."""
        return LayerRates(
            linear_flop_per_s=self.linear_flop_per_s / num_workers,
            attention_flop_per_s=self.attention_flop_per_s / num_workers,
            softmax_scores_per_s=self.softmax_scores_per_s / num_workers,
            elements_per_s=self.elements_per_s / num_workers,
            weights_bytes_per_s=self.weights_bytes_per_s / num_workers,
            call_s=self.call_s * num_workers,
            masked_keys=self.masked_keys,
        )


@dataclass(frozen=True, kw_only=True)
class MachineRates:
    """What a plan is made with.

    Attributes:
        gemm_flop_per_s: GEMM roofline of one worker's device.
        disk_bytes_per_s: reading the checkpoint.
        host_to_device_bytes_per_s: a link from RAM to a device; None on CPU.
        layer: what a decoder layer reaches; None: usual shares of the roofline, and of a card's memory.
        cached_bytes_per_s: reading from the second sweep on what a read-through cache keeps.
        cache_bytes: what that cache holds, the first layers first; None for everything.
        store_bytes_per_s: hidden states on disk, written or read; None: as the disk.
        host_bytes_per_s: copying in RAM.
        decode_weights_per_s: weights a second by step, "nf4" and the like, "plain" (another dtype) and
            "quantize" (to 8 bits).
        memory_bytes_per_s: a card's own memory, read and written; None on CPU or where nobody measured it.
        read_interference: seconds of computing lost a byte read.
        two_lanes_gain: speed of two lanes that share a CPU, together, over that of one; None: not known.
        gain: of this worker, as one of several lanes: part of what a layer reaches.
        rates_from: where the figures come from.
    """

    gemm_flop_per_s: float
    disk_bytes_per_s: float
    host_to_device_bytes_per_s: float | None = None
    layer: LayerRates | None = None
    cached_bytes_per_s: float | None = None
    cache_bytes: int | None = None
    store_bytes_per_s: float | None = None
    host_bytes_per_s: float = NOMINAL_HOST_BYTES_PER_S
    decode_weights_per_s: Mapping[str, float] = field(default_factory=dict)
    memory_bytes_per_s: float | None = None
    read_interference: float = 0.0
    two_lanes_gain: float | None = None
    gain: float = 1.0
    rates_from: str = MEASURED_QUICKLY

    @property
    def layer_rates(self) -> LayerRates:
        """What a layer reaches: as calibrated, or the usual shares of the roofline."""
        alone = self.layer or LayerRates(
            linear_flop_per_s=GEMM_EFFICIENCY * self.gemm_flop_per_s,
            attention_flop_per_s=ATTENTION_EFFICIENCY * self.gemm_flop_per_s,
            elements_per_s=(self.memory_bytes_per_s or math.inf) / BYTES_PER_ELEMENT,
        )
        return alone.shared_by(1 / self.gain)

    def shared_by(self, num_lanes: int) -> MachineRates:
        """What each of several lanes on one CPU reaches, of which these are the rates."""
        if num_lanes == 1:
            return self
        return replace(
            self,
            gemm_flop_per_s=self.gemm_flop_per_s / num_lanes,
            layer=None if self.layer is None else self.layer.shared_by(num_lanes),
            gain=self.two_lanes_gain or 1.0,
        )

    def decode_s(self, step: str, num_weights: int) -> float:
        """Seconds that a step of decoding takes for so many weights."""
        on_cpu = self.host_to_device_bytes_per_s is None
        usual = NOMINAL_DECODE_WEIGHTS_PER_S["cpu" if on_cpu else "cuda"]
        return num_weights / self.decode_weights_per_s.get(step, usual)


LinearKind = Literal["dense", "int8"]
"""How linear layers are computed: in the compute dtype, or with 8-bit weights and activations."""
