"""A real trained model (beside the repository, else skipped): its greedy text tests the loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from strata.engine.model.open_model import BASE_MEMBER, Computing, open_model
from strata.engine.model.vocabulary import TargetTokens, target_logits, vocabulary_projection
from strata.engine.plan.groups import plan_lanes
from strata.engine.plan.sweep_job import SweepJob
from strata.engine.plan.sweep_plan import SweepPlan
from strata.engine.sweep.sweep import run_sweep
from strata.engine.tree.targets import build_scored_tree
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader

from .heads.scored_prompts import branch, prompt

KNOWN_TEXT = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
QUESTIONS = Path(__file__).parents[3] / "shared" / "data" / "kaggle200.csv"
NUM_STEPS = 40
BOS = 1


def plan_of(**choices) -> SweepPlan:
    """A plan by hand: only the decisions matter to a sweep, not what they are expected to cost."""
    decided = {"devices": ("cpu",), "dtype": "float32", "num_groups": 1, "num_slots": 2}
    decided |= {"micro_batch_tokens": 8, "resident_layers": (), "hidden_store": "ram"}
    costs = dict.fromkeys(("tokens", "bytes_read", "memory_bytes", "host_bytes"), 0)
    seconds = dict.fromkeys(("flops", "predicted_s", "compute_s", "read_s"), 0.0)
    return SweepPlan(**(decided | choices), **costs, **seconds, bottleneck="")


class Predictor:
    """Next-token log-probabilities [n, V] after positions of a sequence, by the engine's sweep and head."""

    def __init__(self, folder, tmp_path, **choices) -> None:
        checkpoint, self.folder, self.plan = open_checkpoint(folder), tmp_path, plan_of(**choices)
        computing = Computing(devices=self.plan.devices, dtype=self.plan.torch_dtype)
        self.model = open_model(checkpoint, (), computing, TensorReader())

    def __call__(self, ids: list[int], positions: list[int]) -> np.ndarray:
        checkpoint, reader = self.model.checkpoint, self.model.reader
        scored_tree = build_scored_tree([prompt([branch(0, ids, [(place, None) for place in positions])])])
        groups = plan_lanes(scored_tree, self.plan)
        job = SweepJob(model=self.model, scored_tree=scored_tree, plan=self.plan, groups=groups)
        (group,) = run_sweep(job, self.folder)
        size = checkpoint.config.vocab_size
        logits = target_logits(
            vocabulary_projection(checkpoint),
            group.readouts[BASE_MEMBER],
            TargetTokens(
                rows=np.repeat(np.arange(len(positions)), size),
                token_ids=np.tile(np.arange(size), len(positions)),
                normalized=True,
            ),
            reader,
            [torch.device("cpu")],
        )
        reader.close()
        return logits.values.reshape(len(positions), size)


CHOICES = {
    "streamed, cut fine": {},
    "resident, on disk": {
        "resident_layers": (0, 1, 2, 3, 4),
        "hidden_store": "disk",
        "micro_batch_tokens": 512,
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_greedy_text(choice, stories260k, tmp_path):
    predict = Predictor(stories260k, tmp_path, **CHOICES[choice])
    ids = [BOS]
    for _ in range(NUM_STEPS):
        ids.append(int(predict(ids, [len(ids) - 1])[0].argmax()))
    text = AutoTokenizer.from_pretrained(stories260k).decode(ids, skip_special_tokens=True).strip()
    assert len(text) > 60
    assert KNOWN_TEXT.startswith(text) or text.startswith(KNOWN_TEXT)


def test_log_probabilities_of_every_position_at_once(stories260k, reference, tmp_path):
    ids = AutoTokenizer.from_pretrained(stories260k)(KNOWN_TEXT).input_ids
    assert ids[0] == BOS
    actual = Predictor(stories260k, tmp_path)(ids, list(range(len(ids))))
    expected = reference(stories260k).log_probabilities(ids).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_a_sentence_is_likelier_than_its_words_shuffled(stories260k, score, tmp_path):
    rows = '{"id": "1", "question": "Once upon a time,", "options": [%s], "answer": 0}\n'
    options = ['"there was a little girl named Lily."', '"girl little a was named there Lily."']
    questions = tmp_path / "stories.jsonl"
    questions.write_text(rows % ", ".join(options))
    template = tmp_path / "bare.jinja"
    template.write_text("{{ prompt }} {{ option }}")
    run = score(
        model=stories260k, questions=questions, head="loglik", normalize="none", template=str(template)
    )
    assert run.scores[0].order == (0, 1)
    assert np.ptp(run.scores[0].scores) > 10


@pytest.mark.skipif(not QUESTIONS.is_file(), reason="the real questions are absent")
def test_bfloat16_errs_at_most_twice_as_much_as_transformers(stories260k, score, reference):
    settings = {
        "model": stories260k,
        "questions": QUESTIONS,
        "head": "loglik",
        "normalize": "none",
        "limit": 4,
    }
    exact, half = score(**settings), score(**settings, dtype="bfloat16")
    theirs = reference(stories260k, dtype="bfloat16", attention=None).score(half.out, "loglik")

    def rms_error(scores) -> float:
        errors = [np.asarray(scores[row.question.id]) - row.scores for row in exact.scores]
        return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))

    ours = {row.question.id: row.scores for row in half.scores}
    assert rms_error(ours) <= 2 * rms_error(theirs)
