"""Amounts as people say them: 1.4 TFLOP, 66 GFLOP/s, 12.3 GiB. Durations are `progress.human_time`."""

from __future__ import annotations

PREFIXES = ("", "k", "M", "G", "T", "P", "E")
BINARY_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def human_flops(flops: float) -> str:
    """Floating point operations to three digits, such as 1.40 TFLOP; add "/s" for a rate."""
    value, place = flops, 0
    while value >= 999.5 and place < len(PREFIXES) - 1:
        value, place = value / 1000, place + 1
    return f"{_three_digits(value)} {PREFIXES[place]}FLOP"


def human_bytes(num_bytes: float) -> str:
    """Bytes to three digits, such as 12.3 GiB."""
    value, place = float(num_bytes), 0
    while value >= 999.5 and place < len(BINARY_UNITS) - 1:
        value, place = value / 1024, place + 1
    return f"{num_bytes:.0f} bytes" if place == 0 else f"{_three_digits(value)} {BINARY_UNITS[place]}"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"
