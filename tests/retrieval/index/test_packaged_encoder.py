"""Models inside packages: made-up ones, the check of embeddings, the real one where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from strata.engine.types import InputError
from strata.retrieval.index.packaged_encoder import (
    PACKAGES,
    PARAPHRASES,
    check_paraphrases,
    find_packaged_model,
)

MINILM = "all-MiniLM-L6-v2"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGES[MINILM.lower()]) is None, reason="the extra `encoder` is not installed"
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package that is to hold model `my-model`; importing it fails."""
    folder = tmp_path / "packages" / "strata_made_up_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="ascii")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setitem(PACKAGES, "my-model", "strata_made_up_model")
    return folder


@pytest.mark.parametrize("name", ["my-model", "My-Model", "someone/my-model"])
def test_the_folder_inside_a_package_is_found_without_importing_it(package: Path, name: str) -> None:
    (package / "model").mkdir()
    (package / "model" / "modules.json").write_text("[]", encoding="ascii")
    assert find_packaged_model(name) == package / "model"


def test_a_package_without_a_model_is_refused(package: Path) -> None:
    with pytest.raises(
        InputError, match=r"--encoder my-model: package strata_made_up_model holds no modules"
    ):
        find_packaged_model("my-model")


def test_other_names_and_folders_are_not_packaged(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, "absent-model", "strata_no_such_package")
    assert find_packaged_model("absent-model") is None
    assert find_packaged_model("other/model") is None
    (tmp_path / "my-model").mkdir()
    assert find_packaged_model(str(tmp_path / "my-model")) is None


def toy_encode(swapped: bool):
    """Vectors by pair number; `swapped` gives the last two texts of each side each other's."""

    def encode(texts):
        numbers = [next(n for n, pair in enumerate(PARAPHRASES) if text in pair) for text in texts]
        vectors = np.eye(len(PARAPHRASES), dtype=np.float32)[numbers]
        return vectors[[0, 2, 1]] if swapped and texts[0] == PARAPHRASES[0][1] else vectors

    return encode


def test_an_encoder_that_confuses_meanings_is_refused() -> None:
    check_paraphrases(toy_encode(swapped=False), "m")
    with pytest.raises(InputError, match=r"--encoder m: 'The stock market .* \(cosine 0\.000\)"):
        check_paraphrases(toy_encode(swapped=True), "m")


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_an_encoder_that_tells_nothing_apart_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="expected a trained encoder"):
        check_paraphrases(lambda texts: np.full((len(texts), 4), value, dtype=np.float32), "m")


@needs_minilm
def test_the_real_model_encodes_sense_by_its_name_alone() -> None:
    pytest.importorskip("sentence_transformers")
    from strata.retrieval.index.encoders import EncoderSettings, SentenceEncoder

    encoder = SentenceEncoder(EncoderSettings(model=f"sentence-transformers/{MINILM}"))
    assert (encoder.name, encoder.dim, encoder.description["max_tokens"]) == (MINILM, 384, 256)
    query = encoder.encode_queries(["A man is eating food."])[0]
    texts = ["A man is eating a piece of bread.", "A monkey is playing drums.", "A cheetah chases its prey."]
    cosines = encoder.encode_passages(texts) @ query
    assert cosines[0] > 0.7
    assert cosines[0] > cosines[1:].max() + 0.4
