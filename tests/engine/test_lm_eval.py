"""Log-likelihoods beside those of lm-evaluation-harness itself, where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from ..sample_questions import QUESTIONS, write_jsonl

# Numbers, and what a tokenizer may glue to its neighbours.
ODD = [
    {"id": "n", "question": "How many?", "options": ["2", "two of 30", "3,000", "none"], "answer": 0},
    {
        "id": "u",
        "question": "Qui?\n",
        "options": ["\u00e9t\u00e9 \U0001f600", "(a)", '"b"', "1/2"],
        "answer": 1,
    },
]
STATEMENT = "Question: {{ prompt }}\nAnswer: {{ option }}"


@pytest.fixture(scope="module")
def harness(checkpoint):
    """`harness(folder, [(context, continuation)])` -> [(log-likelihood, is greedy)] by lm_eval's hf model."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    def run(folder, pairs):
        model = huggingface.HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index)
            for index, pair in enumerate(pairs)
        ]
        return model.loglikelihood(requests, disable_tqdm=True)

    return run


@pytest.mark.parametrize("model", ["stories260k", "llama-gqa"])
def test_options_are_as_likely_as_lm_eval_says(model, harness, checkpoint, score, tmp_path, request):
    folder = request.getfixturevalue(model) if model == "stories260k" else checkpoint(model)
    rows = [{**row, "context": ""} for row in [*QUESTIONS, *ODD]]
    template = tmp_path / "statement.jinja"
    template.write_text(STATEMENT)
    questions = write_jsonl(tmp_path / "q.jsonl", rows)
    run = score(model=folder, questions=questions, head="loglik", template=str(template))
    pairs = [
        (f"Question: {row['question']}\nAnswer:", f" {option}") for row in rows for option in row["options"]
    ]
    theirs = iter(harness(folder, pairs))
    for row, found in zip(rows, run.scores, strict=True):
        expected = np.array([next(theirs)[0] for _ in row["options"]])
        lengths = np.array([float(len(option)) for option in row["options"]])
        np.testing.assert_allclose(found.member_scores["loglik"], expected, rtol=0, atol=1e-3)
        # acc_norm of lm_eval.api.task.ConfigurableTask.process_results.
        assert found.order[0] == np.argmax(expected / lengths)
