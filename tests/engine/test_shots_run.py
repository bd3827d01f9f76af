"""Runs with few-shot examples, in a chat and without contexts, from the flags on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from strata.engine.types import InputError

from ..reference import read_prompts
from ..sample_questions import QUESTIONS, write_jsonl
from .encoders.tiny_encoder import build_encoder

SHOTS = [{**row, "id": f"s-{row['id']}", "question": f"{row['question']} Say."} for row in QUESTIONS]


@pytest.fixture
def shots(tmp_path):
    return write_jsonl(tmp_path / "shots.jsonl", SHOTS)


@pytest.mark.parametrize("chat", [False, True])
def test_examples_are_computed_once(chat, checkpoint, score, shots, reference, tmp_path):
    frame = tmp_path / "frame.jinja"
    frame.write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:\n"
    )
    given = {"chat": True, "template": str(frame)} if chat else {}
    model = checkpoint("llama-gqa")
    bare = score(model=model, head="letters", **given)
    run = score(model=model, head="letters", shots=shots, num_shots=3, **given)
    paths = {tuple(branch["ids"]) for line in read_prompts(run.out) for branch in line["branches"]}
    shared = len(common_prefix(paths))
    assert shared > 100
    nodes = {path[:end] for path in paths for end in range(1, len(path) + 1)}
    assert run.record["measured"]["tokens_computed"] == len(nodes)
    # The examples are computed once for all questions: all else is what a run without them computes.
    assert len(nodes) - bare.record["measured"]["tokens_computed"] <= shared
    expected = reference(model).score(run.out, "letters")
    for row in run.scores:
        np.testing.assert_allclose(row.scores, expected[row.question.id], rtol=0, atol=1e-4)


def common_prefix(paths):
    columns = zip(*paths, strict=False)
    return list(itertools.takewhile(lambda tokens: len(set(tokens)) == 1, columns))


def test_contexts_are_left_out(checkpoint, score, tmp_path):
    bare = write_jsonl(tmp_path / "bare.jsonl", [{**row, "context": ""} for row in QUESTIONS])
    model = checkpoint("llama-gqa")
    found, expected = (
        score(model=model, head="letters", context_column="none"),
        score(model=model, head="letters", questions=bare),
    )
    for row, other in zip(found.scores, expected.scores, strict=True):
        np.testing.assert_array_equal(row.scores, other.scores)
    assert "missing context" not in found.record["warnings"]["rows"]
    assert found.record["run_info"]["config"]["context_column"] == "none"


ENCODER_FLAGS = {
    "--chat": {"chat": True},
    "--system": {"system": "Be brief."},
    "--shots": {"num_shots": 2},
    "--normalize byte": {"normalize": "byte"},
}


@pytest.mark.parametrize("flag", ENCODER_FLAGS)
def test_encoders_refuse_what_they_cannot_honour(flag, score, shots, tmp_path):
    settings = ENCODER_FLAGS[flag] | ({"shots": shots} if flag == "--shots" else {})
    with pytest.raises(InputError, match=f"{flag}: .* is an encoder"):
        score(model=build_encoder("bert", tmp_path / "bert"), **settings)
