"""Scripts and data inside a page: compressed, so that plotly and thousands of questions stay below the limit.

What is packed is base64, which no text can break out of; JSON is ASCII, so lone surrogates survive as
escapes.
"""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache

GZIP_LEVEL = 6


def pack(text: str) -> str:
    """The text gzipped, in base64."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=GZIP_LEVEL, mtime=0)).decode()


def pack_json(value: object) -> str:
    """The value as JSON, packed."""
    return pack(json.dumps(value, allow_nan=False, separators=(",", ":")))


@cache
def packed_plotly() -> str:
    """plotly.js as the package `plotly` brings it, packed; empty where that is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        return ""
    return pack(get_plotlyjs())
