"""What cards compute at most by their datasheets, which shares are told of. Measures nothing."""

from __future__ import annotations

import torch

HALF_PEAKS = {"T4": 65e12, "A100": 312e12, "L4": 121e12, "H100": 989e12, "H200": 989e12}
"""Dense float16 FLOP/s (bfloat16's, too, where there is that), by a word of the card's name."""
INT8_PEAKS = {"T4": 130e12, "A100": 624e12, "L4": 242e12, "H100": 1979e12, "H200": 1979e12}
"""Dense int8 operations a second; both from NVIDIA's datasheets, of SXM modules."""


def share_of_peak(per_s: float, card: str, dtype: torch.dtype) -> float | None:
    """A rate over the datasheet's, which is called MFU; None for cards and dtypes that are not listed."""
    peaks = {torch.int8: INT8_PEAKS, torch.float16: HALF_PEAKS, torch.bfloat16: HALF_PEAKS}.get(dtype, {})
    peak = next((peak for word, peak in peaks.items() if word in card.replace("-", " ").split()), None)
    return per_s / peak if peak else None
