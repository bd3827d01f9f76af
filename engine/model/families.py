"""What a model family asks for that strata does not have: told by its config, or by what its modules do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig

from strata.engine.types import InputError


class UnsupportedFamilyError(NotImplementedError):
    """A family's modules ask for something that strata does not have; the message says for what."""


@contextmanager
def refuse_what_transformers_cannot(config: PreTrainedConfig) -> Iterator[None]:
    """Around code that runs a family's modules: what they cannot do becomes an InputError.

    Errors raised in strata's own modules are mistakes of ours and pass through, unless they say themselves
    that the family is not supported.

    Raises:
        InputError: the family cannot be run.
    """
    try:
        yield
    except UnsupportedFamilyError as error:
        raise _not_supported(config, error) from None
    except FAMILY_ERRORS as error:
        if not _ends_in_transformers(error):
            raise
        raise _not_supported(config, error) from None


def _ends_in_transformers(error: BaseException) -> bool:
    """Whether transformers' code, its hub library's, or what they called raised the error, and not ours."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [module.partition(".")[0] for module in modules]
    return next(name for name in reversed(packages) if name in ("strata", *LIBRARIES)) != "strata"


def _not_supported(config: PreTrainedConfig, error: BaseException) -> InputError:
    told = str(error).strip() or "no reason given"
    reason = f"{type(error).__name__}: {told}" if isinstance(error, KeyError) else told.splitlines()[0]
    return InputError(f"model type {config.model_type!r} is not supported: {reason}")


def refuse_unsupported(config: PreTrainedConfig) -> None:
    """Raises InputError when the config asks for something that would be silently wrong."""
    for name, allowed in UNSUPPORTED_SETTINGS.items():
        setting = getattr(config, name, None)
        if setting not in allowed:
            raise InputError(f"model type {config.model_type!r}: {name}={setting} is not supported")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise InputError(f"model type {config.model_type!r}: layers of type {min(kinds)} are not supported")


def rope_type(config: PreTrainedConfig) -> str:
    """The config's kind of rotary scaling; where layers differ, one that depends on length if any."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [kind for kind in parameters.values() if isinstance(kind, dict)] or [parameters]
    kinds = [kind.get("rope_type", "default") for kind in by_layer_type]
    return next((kind for kind in kinds if kind in LENGTH_DEPENDENT_ROPE), kinds[0])


UNSUPPORTED_SETTINGS = {
    "use_bidirectional_attention": (None, False),
    "attention_chunk_size": (None,),
    "alibi": (None, False),
}

FAMILY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What transformers raises when a family is built or run in a way that it is not made for."""

LIBRARIES = ("transformers", "huggingface_hub")

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
