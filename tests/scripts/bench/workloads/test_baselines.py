"""The baselines agree with each other and with plain logits, on questions that share nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from strata.engine.plan.shapes import TINY
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.workloads.baselines import hf_dynamic_cache, hf_naive, load_hf_model
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.synthetic_questions import SyntheticQuestion, synthetic_questions


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_random_checkpoint(TINY, tmp_path_factory.mktemp("baselines") / "tiny", dtype="float32")


def test_synthetic_questions_share_no_first_token():
    size = QuestionSize(prefix_tokens=3, option_tokens=2, num_options=5)
    questions = synthetic_questions(20, size, vocab_size=30, seed=3)
    assert len({int(question.prefix_ids[0]) for question in questions}) == 20
    assert all(len({int(ids[0]) for ids in question.option_ids}) == 5 for question in questions)
    every_id = np.concatenate([np.concatenate([q.prefix_ids, *q.option_ids]) for q in questions])
    assert every_id.shape == (20 * size.num_tokens,) == (20 * (3 + 5 * 2),)
    assert (every_id.min(), every_id.max()) == (3, 29)
    with pytest.raises(ValueError, match="vocab_size 22: expected at least 23"):
        synthetic_questions(20, size, vocab_size=22)


def test_baselines_agree_with_each_other_and_with_plain_logits(checkpoint):
    model = load_hf_model(checkpoint, dtype=torch.float32, device="cpu")
    size = QuestionSize(prefix_tokens=40, option_tokens=6, num_options=5)
    questions = synthetic_questions(3, size, vocab_size=TINY.vocab_size)
    naive = hf_naive(model, questions, label_token_ids=(5, 9))
    cached = hf_dynamic_cache(model, questions, label_token_ids=(5, 9))
    assert naive.scores.shape == (3, 5)
    # Two float32 sums of the same terms in another order; scores are of order 0.1.
    np.testing.assert_allclose(naive.scores, cached.scores, atol=1e-5, rtol=0)
    ids = np.concatenate([questions[1].prefix_ids, questions[1].option_ids[2]])
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1]
    assert naive.scores[1, 2] == pytest.approx(float(logits[5] - logits[9]), abs=1e-5)
    assert naive.scores.std() > 1e-2
    assert len(naive.question_s) == len(cached.question_s) == 3
    assert naive.median_s == sorted(naive.question_s)[1]


def test_dynamic_cache_refuses_options_of_different_lengths(checkpoint):
    model = load_hf_model(checkpoint, dtype=torch.float32, device="cpu")
    question = SyntheticQuestion(np.arange(3, 9), (np.arange(3, 5), np.arange(3, 6)))
    with pytest.raises(ValueError, match=r"options of \[2, 3\] tokens"):
        hf_dynamic_cache(model, [question])
