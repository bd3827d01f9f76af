"""The bench beside lm-evaluation-harness, on a tiny model and a few questions."""

from __future__ import annotations

import json
import sys

import pytest

from strata.engine.types import InputError
from strata.scripts.bench.lm_eval import lm_eval
from strata.scripts.bench.lm_eval.config import LMEvalBenchConfig
from strata.scripts.bench.lm_eval.models import make_model

ROWS = [
    {"id": str(number), "question": f"What is {number} and one?", "options": ["more", "less"], "answer": 0}
    for number in range(8)
]


@pytest.fixture
def data(tmp_path):
    for name in lm_eval.FILES.values():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_both_run_and_the_ratio_is_kept(data, tmp_path, fixed_rates, monkeypatch):
    pytest.importorskip("lm_eval.models.huggingface")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(lm_eval, "RESULTS", tmp_path / "results")
    config = LMEvalBenchConfig(
        data=data,
        models=("tiny",),
        tasks=("openbookqa",),
        shots=(0, 2),
        limit=5,
        batch_sizes=(1, 3),
        trial_questions=2,
        dtype="float32",
        folder=tmp_path / "models",
    )
    assert lm_eval.run_lm_eval_bench(config) == 0
    found = json.loads((tmp_path / "results" / "lm_eval.jsonl").read_text())
    for row, shots in zip(found["rows"], (0, 2), strict=True):
        assert found[f"lm_eval_speedup_tiny_openbookqa_{shots}"] == row["speedup"] > 0
        assert row["speedup"] == pytest.approx(row["hf_s"] / row["strata_s"])
        assert row["hf_batch_size"] in (1, 3)
        assert (row["acc"], row["acc_norm"]) == (row["hf_acc"], row["hf_acc_norm"])
        assert (row["requests"], row["greedy_differ"]) == (10, 0)
        assert row["max_abs_diff"] < 1e-4
    # Few-shot examples are other ones for each question: no prefix of one serves another's.
    assert found["rows"][1]["tokens_computed"] > 2 * found["rows"][0]["tokens_computed"]


def test_differences_are_the_largest_of_all_requests():
    found = lm_eval.differences([(-1.0, True), (-2.5, False)], [(-1.25, True), (-2.0, True)])
    assert found == {"requests": 2, "max_abs_diff": 0.5, "greedy_differ": 1}


def test_models_are_made_once(tmp_path):
    first = make_model("tiny", tmp_path, "float32", [row["question"] for row in ROWS])
    before = (first / "tokenizer.json").stat().st_mtime_ns
    assert make_model("tiny", tmp_path, "float32", []) == first
    assert (first / "tokenizer.json").stat().st_mtime_ns == before


def test_an_absent_question_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--data: no arc_challenge_val\.jsonl in"):
        list(lm_eval.question_texts(LMEvalBenchConfig(data=tmp_path)))


def test_without_the_harness_a_line_says_so(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r'expected pip install "strata-score\[lm-eval\]"'):
        lm_eval.run_lm_eval_bench(LMEvalBenchConfig(data=data))
