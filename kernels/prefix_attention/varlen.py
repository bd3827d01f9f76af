"""Prefix attention as calls of a variable-length kernel over whole sequences, without masks: the way on CUDA.

Three kernels, by what the device and the job ask: flash-attn's own where it is installed (soft caps too), the
FlashAttention-2 inside torch from compute capability 8.0 on, and torch's memory-efficient one everywhere
else, T4 and float32 included. Never cuDNN's, which makes a plan for every new pair of lengths.
The query heads that share a kv head share its keys: flash knows such groups, and the memory-efficient kernel
is called a kv head at a time with the group as a head axis of stride 0, so that no key is repeated.
The FlashAttention-2 inside torch also tells log-sum-exps, so that siblings share what is above them: their
rows over these keys, gathered once, are one call, their own keys another, and the two are merged.
Tiles with masks, which a plan holds only where siblings are above a window, go through SDPA.
Legend: T query rows, N query heads, K kv heads, G = N / K, C key space, J gathered keys, H head dim.
Source: ATen/native/transformers/cuda/mem_eff_attention/kernel_forward.h (custom_mask_type 2, windows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from packaging.version import Version
from torch.nn.functional import pad

from strata.kernels.prefix_attention.backend import (
    SEQUENCE_CUT,
    AttentionRequest,
    AttentionSettings,
    TileSize,
)
from strata.kernels.prefix_attention.flash import attend_flash, attend_flash_attn, attend_flash_part
from strata.kernels.prefix_attention.parts import merge_attention
from strata.kernels.prefix_attention.sdpa import attend_tile
from strata.kernels.prefix_attention.sequences import GATHERED_KEYS, SequenceCall, plan_sequences
from strata.kernels.prefix_attention.tile import Tile, TileCut

CAUSAL_FROM_BOTTOM_RIGHT = 2
"""`custom_mask_type` of torch's memory-efficient kernel."""

ALIGNED_ELEMENTS = 4
"""Rows and heads begin at multiples of so many elements in that kernel (`check_supported`)."""

LEAST_TORCH = Version("2.11")
"""From this version on torch's flash kernel was seen to give log-sum-exps as [N, T] for such calls."""

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, SequenceCall, AttentionSettings], torch.Tensor]
"""(query [T, N, H], keys [K, J, H], values [K, J, H], call, settings) -> attended [T, N, H]."""

Part = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, SequenceCall, AttentionSettings, bool],
    tuple[torch.Tensor, torch.Tensor],
]
"""The same, and whether it is causal -> attended [T, N, H] and log-sum-exps [N, T] float32."""


@dataclass(frozen=True, kw_only=True)
class VarlenBackend:
    """A variable-length kernel, and what it is good for; gradients come from autograd.

    Attributes:
        name: of the backend.
        kernel: what computes a call.
        is_flash: of the FlashAttention kind: 16-bit types, heads of at most 256, capability 8.0 or later.
        has_softcap: whether the kernel caps scores.
        window_gradients: whether its backward pass knows windows.
        is_installed: whether this build of torch, or the environment, has it.
        part: computes a call, causal or without a mask, and tells log-sum-exps; None where it cannot.
    """

    name: str
    kernel: Kernel
    is_flash: bool
    has_softcap: bool
    window_gradients: bool
    is_installed: Callable[[], bool]
    part: Part | None = None

    @property
    def cut(self) -> TileCut:
        """Whole sequences."""
        return SEQUENCE_CUT

    def takes(self, request: AttentionRequest) -> bool:
        """What the kernel knows, on CUDA; with no dtype or capability given, what needs neither."""
        if request.device_type != "cuda" or (request.has_softcap and not self.has_softcap):
            return False
        if not self.is_flash:
            is_old = request.capability is not None and request.capability < (8, 0)
            return request.dtype != torch.float64 and not (is_old and request.dtype == torch.bfloat16)
        return (
            request.dtype in (torch.float16, torch.bfloat16)
            and request.capability is not None
            and request.capability >= (8, 0)
            and request.head_dim is not None
            and request.head_dim <= 256
            and request.head_dim % 8 == 0
            and self.is_installed()
        )

    def scratch_bytes(self, size: TileSize, request: AttentionRequest) -> int:
        """Gathered keys and values, and a result in float32, which wide heads are summed in.

        Or the rows that share what is above them, their second part and its log-sum-exps, which is no more.
        With gradients, autograd keeps the gathered keys of every call until the backward pass.
        """
        gathered = min(size.rows * size.keys, max(GATHERED_KEYS, size.keys))
        keys = 2 * size.num_kv_heads * gathered * size.head_dim * size.itemsize
        return keys + size.rows * size.num_heads * (size.head_dim * 4 + (8 if self.part is not None else 0))

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tiles: Sequence[Tile],
        settings: AttentionSettings,
    ) -> torch.Tensor:
        """Attention [T, N, H] of query [N, T, H] over the key space [K, C, H]; see `Backend.attend`."""
        is_trained = needs_gradients(query, keys, values)
        plan = plan_sequences(
            tiles,
            query.device,
            windows=self.window_gradients or not is_trained,
            shares=self.part is not None and not is_trained,
        )
        num_heads, num_rows, head_dim = query.shape
        query_TNH = query.transpose(0, 1)
        output = None
        for call in plan.calls:
            rows = slice(*call.rows)
            attended = self._attend_call(query_TNH[rows], keys, values, call, settings)
            if call.rows == (0, num_rows):
                return attended
            output = query.new_empty(num_rows, num_heads, head_dim) if output is None else output
            output[rows] = attended
        output = query.new_empty(num_rows, num_heads, head_dim) if output is None else output
        for tile in plan.others:
            output[slice(*tile.rows)] = attend_tile(query, keys, values, tile, settings)
        return output

    def _attend_call(
        self,
        query_TNH: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        call: SequenceCall,
        settings: AttentionSettings,
    ) -> torch.Tensor:
        shared = call.shared
        if shared is None or self.part is None:
            return self.kernel(query_TNH, call.gathered(keys), call.gathered(values), call, settings)
        own = call.gathered(keys), call.gathered(values)
        attended, lse = self.part(query_TNH, *own, call, settings, True)
        del own
        above = shared.call.gathered(keys), shared.call.gathered(values)
        query_RNH = query_TNH.index_select(0, shared.query_rows)
        other, other_lse = self.part(query_RNH, *above, shared.call, settings, False)
        merge_attention(attended, lse, other, other_lse, shared.query_rows)
        return attended


def needs_gradients(*tensors: torch.Tensor) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def attend_efficient(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    call: SequenceCall,
    settings: AttentionSettings,
) -> torch.Tensor:
    """Through torch's memory-efficient kernel, a kv head at a time where several heads share one."""
    true_head_dim = query.shape[2]
    query, keys, values = map(_aligned, (query, keys, values))
    num_kv_heads, num_keys, head_dim = keys.shape
    groups = query.shape[1] // num_kv_heads

    def attend(part: slice, heads: slice) -> torch.Tensor:
        key, value = (
            states[part].transpose(0, 1)[None].expand(1, num_keys, heads.stop - heads.start, head_dim)
            for states in (keys, values)
        )
        attended: torch.Tensor = torch.ops.aten._efficient_attention_forward(
            query[None, :, heads],
            key,
            value,
            None,
            call.cu_seqlens_q,
            call.cu_seqlens_k,
            call.max_seqlen_q,
            call.max_seqlen_k,
            0.0,
            CAUSAL_FROM_BOTTOM_RIGHT,
            needs_gradients(query, keys, values),
            scale=settings.scaling,
            window_size=call.window,
        )[0][0]
        return attended[..., :true_head_dim]

    if groups == 1:
        return attend(slice(0, num_kv_heads), slice(0, num_kv_heads))
    heads = [
        attend(slice(head, head + 1), slice(head * groups, (head + 1) * groups))
        for head in range(num_kv_heads)
    ]
    return heads[0] if num_kv_heads == 1 else torch.cat(heads, dim=1)


def _aligned(states: torch.Tensor) -> torch.Tensor:
    """The same, whose rows and heads begin where the memory-efficient kernel can load them from."""
    if states.shape[2] % ALIGNED_ELEMENTS:
        return pad(states, (0, -states.shape[2] % ALIGNED_ELEMENTS))
    return (
        states
        if all(stride % ALIGNED_ELEMENTS == 0 for stride in states.stride()[:2])
        else states.contiguous()
    )


FLASH_ATTN = VarlenBackend(
    name="flash-attn",
    kernel=attend_flash_attn,
    is_flash=True,
    has_softcap=True,
    window_gradients=True,
    is_installed=lambda: find_spec("flash_attn") is not None,
)
FLASH = VarlenBackend(
    name="flash-varlen",
    kernel=attend_flash,
    is_flash=True,
    has_softcap=False,
    window_gradients=True,
    is_installed=lambda: torch.backends.cuda.is_flash_attention_available(),
    part=attend_flash_part if Version(torch.__version__) >= LEAST_TORCH else None,
)
# Its backward pass counts a window from the top left (kernel_backward.h), which is another one.
EFFICIENT = VarlenBackend(
    name="efficient-varlen",
    kernel=attend_efficient,
    is_flash=False,
    has_softcap=False,
    window_gradients=False,
    is_installed=lambda: True,
)
