"""--deterministic: a question's scores are the same bits, whatever else is scored and however it is cut.

Compared as float64 arrays for equality. The plain run is the independent check that they are the right bits.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from strata.engine.jobs.job import Session
from strata.engine.members.member import Member
from strata.engine.model import int8_linears
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.scorer import Scorer
from strata.engine.types import InputError, Question

from ..engine.encoders.tiny_encoder import build_encoder
from .changed_questions import (
    CHANGES,
    ROWS,
    make_adapter,
    renamed,
    scores_of,
    with_a_twin_option,
    without_answers,
)

ROUNDING = 1e-5
MODELS = {
    "loglik": ("llama-gqa", {"head": "loglik"}),
    "yes-no": ("gemma2", {"head": "yes-no"}),
    "letters": ("qwen3", {"head": "letters", "debias": "rotate"}),
    "experts": ("mixtral", {"head": "loglik"}),
    "int8": ("llama-gqa", {"head": "loglik", "dtype": "int8", "int8_check_questions": 0}),
    "bfloat16": ("llama-gqa", {"head": "yes-no", "dtype": "bfloat16"}),
    "classifier": ("llama-gqa", {"head": "auto"}),
    "adapters": ("llama-gqa", {"head": "loglik", "adapter": (1, 2)}),
}
OF_THE_FILE = (renamed, without_answers)
"""Changes that reach no model: one shows it for all."""
LAYOUTS = [
    {"num_groups": 3},
    {"resident_layers": 0, "hidden_store": "disk"},
    {"devices": "cpu,cpu", "num_groups": 2},
]


@pytest.fixture
def settings_of(checkpoint, tmp_path):
    """`settings_of(name)` -> the settings of a row of MODELS."""

    def settings(name: str) -> dict:
        family, given = MODELS[name]
        model = checkpoint(family, "classifier" if name == "classifier" else "causal_lm")
        adapters = [
            make_adapter(model, tmp_path / f"adapter{seed}", seed) for seed in given.get("adapter", ())
        ]
        return given | {"model": model, "adapter": tuple(adapters), "deterministic": True}

    return settings


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found
    for name, scores in found.items():
        np.testing.assert_array_equal(scores, expected[name], err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_whatever_else_is_scored(name, settings_of, score, tmp_path, monkeypatch):
    # So few tokens would not be enough to settle what later questions are rounded by.
    monkeypatch.setattr(int8_linears, "SETTLED_TOKENS", 1)
    settings = settings_of(name)
    expected = scores_of(score, tmp_path, ROWS, **settings)
    for change in CHANGES:
        if change is not with_a_twin_option and (name == "loglik" or change not in OF_THE_FILE):
            assert_same_bits(change(score, tmp_path, **settings), expected)
    for layout in LAYOUTS:
        assert_same_bits(scores_of(score, tmp_path, ROWS, **(settings | layout)), expected)
    if name not in ("int8", "bfloat16"):
        plain = scores_of(score, tmp_path, ROWS, **(settings | {"deterministic": False}))
        for question, scores in expected.items():
            np.testing.assert_allclose(scores, plain[question], rtol=0, atol=ROUNDING)


def test_several_threads(settings_of, score, tmp_path):
    settings = settings_of("loglik")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = scores_of(score, tmp_path, ROWS, **settings)
        for change in CHANGES[:4]:
            assert_same_bits(change(score, tmp_path, **settings), expected)
    finally:
        torch.set_num_threads(before)


def test_encoders(score, tmp_path):
    model = build_encoder("deberta", tmp_path / "encoder")
    settings = {"model": model, "deterministic": True}
    expected = scores_of(score, tmp_path, ROWS, **settings)
    for change in CHANGES:
        if change is not with_a_twin_option:
            assert_same_bits(change(score, tmp_path, **settings), expected)


def test_prefixes_are_not_shared_between_questions(settings_of, score, tmp_path):
    settings = settings_of("loglik")
    rows = [ROWS[0], ROWS[0] | {"id": "again"}]
    once = scores_of(score, tmp_path, ROWS[:1], **settings)
    assert_same_bits(scores_of(score, tmp_path, rows, **settings), once | {"again": once[ROWS[0]["id"]]})
    counts = [
        score(questions=tmp_path / "rows.jsonl", **(settings | given)).record["plan"]
        for given in ({}, {"deterministic": False})
    ]
    assert counts[0]["num_micro_batches"] == 2
    assert counts[0]["tokens_computed"] == 2 * counts[1]["tokens_computed"]


@pytest.mark.parametrize(
    ("given", "told"),
    [({"micro_batch_tokens": 64}, "--micro-batch-tokens"), ({"devices": "cuda:0"}, "--devices|CUDA|cuda")],
)
def test_what_it_cannot_promise_is_refused(given, told, settings_of, score, tmp_path):
    with pytest.raises(InputError, match=told):
        scores_of(score, tmp_path, ROWS, **(settings_of("loglik") | given))


def test_a_run_is_not_resumed_without_it(settings_of, tmp_path):
    question = Question(id="1", prompt="Which?", options=("this", "that"))
    digests = set()
    for deterministic in (False, True):
        overrides = PlanOverrides(deterministic=deterministic)
        session = Session(folder=tmp_path, overrides=overrides)
        with Scorer.open([Member(model=settings_of("loglik")["model"])], session=session) as scorer:
            digests.add(scorer.fingerprint(scorer.render([question])))
    assert len(digests) == 2
