"""The command `strata lm-eval`: lm-evaluation-harness' own, which knows the model "strata" beside its others.

Version 0.4.13 finds no models in other packages, so the class is registered here; later ones find it by the
entry point of the group `lm_eval.models`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from strata.engine.types import InputError

MODEL_NAME = "strata"
MODEL_CLASS = "strata.scripts.bridges.lm_eval:StrataLM"
NEEDED = 'expected pip install "strata-score[lm-eval]"'


def run_lm_eval(arguments: Sequence[str]) -> int:
    """Hands arguments on to lm-evaluation-harness' command line; returns the exit status.

    Raises:
        InputError: it is not installed, or a task wants what strata does not do.
    """
    register_model()
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["strata lm-eval", *arguments]
    try:
        cli_evaluate()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0


def register_model() -> None:
    """Makes `--model strata` known to lm-evaluation-harness, for `lm_eval.simple_evaluate` as well.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise InputError(f"lm-eval is not installed; {NEEDED}")
    # The harness registers its own models only while nobody else has registered one.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=MODEL_CLASS)
