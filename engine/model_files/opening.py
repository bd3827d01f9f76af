"""One model is opened at a time: while libraries build one they change settings of the whole process.

transformers sets torch's default dtype and replaces initialisers meanwhile; what another thread builds then
can be of the wrong dtype, or have no weights.
"""

from __future__ import annotations

import threading

OPENING = threading.RLock()
"""Held by whoever opens a model, in any thread."""
