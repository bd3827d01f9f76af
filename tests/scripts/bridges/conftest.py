"""lm-evaluation-harness, its own model beside ours, and a task of a few questions."""

from __future__ import annotations

import json

import pytest

ROWS = [
    {"question": "What carries sand to the sea?", "options": ["the river", "a bee", "the moon"], "answer": 0},
    {
        "question": "What pulls on the ocean?",
        "options": ["iron", "the moon", "a feather", "tin"],
        "answer": 1,
    },
    {"question": "Warm water", "options": ["sinks", "rises", "melts"], "answer": 1},
    {"question": "Copper and tin were melted by the", "options": ["smiths", "tide"], "answer": 0},
    {"question": "Which?", "options": ["3,000", "12 of 30", "(a)", "none"], "answer": 2},
    {"question": "A bee finds the field by", "options": ["the light of the sky", "sand"], "answer": 0},
]
TASK = {
    "task": "few",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "validation_split": "validation",
    "fewshot_split": "validation",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "answer",
    "doc_to_choice": "options",
    "metric_list": [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
    ],
}


@pytest.fixture
def task(tmp_path):
    """A multiple-choice task on questions in a JSONL file."""
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {**TASK, "dataset_kwargs": {"data_files": {"validation": str(file)}}}


@pytest.fixture
def data_set_cache(tmp_path, monkeypatch):
    """Where the data sets of tasks are kept, for this test alone."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="session")
def harness_model():
    """`harness_model(folder, **settings)` -> the harness' own `hf` model, in float32 on the CPU."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")

    def build(folder, **settings):
        return huggingface.HFLM(str(folder), device="cpu", dtype="float32", **settings)

    return build


@pytest.fixture
def strata_model():
    """`strata_model(folder, **settings)` -> ours, in float32 on the CPU; closed when the test ends."""
    pytest.importorskip("lm_eval.models.utils")
    from strata.scripts.bridges.lm_eval import StrataLM

    opened = []

    def build(folder, **settings):
        opened.append(StrataLM(folder, device="cpu", dtype="float32", **settings))
        return opened[-1]

    yield build
    for model in opened:
        model.close()
