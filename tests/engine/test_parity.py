"""Scores of whole runs against transformers' own forward on every branch alone (tests/reference.py)."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf

from strata.engine.results.tables import read_scores

from ..families import CLASSIFIER_FAMILIES, CONFIGS, FAMILIES, randomize_weights
from ..reference import read_prompts
from ..sample_questions import QUESTIONS, write_jsonl

# Both sides are float32 and differ in summation order only.
TOLERANCE = 1e-4
JOBS = {
    "yes_no": {"head": "yes-no"},
    "letters": {"head": "letters"},
    "letters_rotate": {"head": "letters", "debias": "rotate"},
    "loglik": {"head": "loglik", "normalize": "none"},
}


def scores_by_id(run) -> dict[str, np.ndarray]:
    return {row.question.id: row.scores for row in run.scores}


def assert_scores_equal(run, expected: dict[str, np.ndarray], tolerance: float = TOLERANCE) -> None:
    actual = scores_by_id(run)
    assert list(actual) == list(expected)
    for question_id, scores in expected.items():
        np.testing.assert_allclose(actual[question_id], scores, rtol=0, atol=tolerance, err_msg=question_id)
    widest = max(np.ptp(scores) for scores in expected.values())
    assert widest > 100 * tolerance, "the options' scores hardly differ: the comparison says nothing"


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("family", FAMILIES)
def test_language_model_heads(family, job, checkpoint, reference, score):
    model = checkpoint(family)
    run = score(model=model, **JOBS[job])
    assert_scores_equal(run, reference(model).score(run.out, job))


@pytest.mark.parametrize("head", ["binary", "contrast"])
@pytest.mark.parametrize("family", CLASSIFIER_FAMILIES)
def test_classifier_heads(family, head, checkpoint, reference, score):
    model = checkpoint(family, {"binary": "classifier", "contrast": "contrast_classifier"}[head])
    run = score(model=model, head=head)
    assert_scores_equal(run, reference(model).score(run.out, head))


def test_labels_whose_tokens_straddle_the_prompt(checkpoint, reference, score, tmp_path):
    # After this space the tokenizer makes one token of " A" and of " B", but two of " C".
    template = tmp_path / "spaced.jinja"
    template.write_text(
        "{{ prompt }} {% for letter, text in options %}{{ letter }}: {{ text }} {% endfor %}Answer: "
    )
    model = checkpoint("llama-gqa")
    run = score(model=model, template=str(template), head="letters")
    branches = read_prompts(run.out)[0]["branches"]
    assert len({branch["targets"][0][0] for branch in branches}) == 2
    assert_scores_equal(run, reference(model).score(run.out, "letters"))


def test_auto_head_reads_what_the_checkpoint_holds(checkpoint, score):
    for kind, head in (("classifier", "binary"), ("contrast_classifier", "contrast")):
        model = checkpoint("llama-gqa", kind)
        chosen, named = score(model=model), score(model=model, head=head)
        for left, right in zip(chosen.scores, named.scores, strict=True):
            np.testing.assert_array_equal(left.scores, right.scores)


def test_sharded_checkpoint_scores_as_a_single_file(checkpoint, score):
    sharded = checkpoint("llama-gqa", "sharded")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    expected = scores_by_id(score(model=checkpoint("llama-gqa"), head="yes-no"))
    actual = scores_by_id(score(model=sharded, head="yes-no"))
    for question_id, scores in expected.items():
        np.testing.assert_array_equal(actual[question_id], scores)


def test_normalization_decides_the_scores_and_sums_are_kept(checkpoint, score, reference):
    model = checkpoint("llama-gqa")
    run = score(model=model, head="loglik")
    expected = reference(model).score(run.out, "loglik")
    for row in run.scores:
        lengths = np.array([len(option) for option in row.question.options])
        np.testing.assert_allclose(row.scores, expected[row.question.id] / lengths, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(row.member_scores["loglik"], expected[row.question.id], atol=TOLERANCE)
    assert run.record["plan"]["normalize"] == "char"
    columns = pq.read_table(run.out / "scores.parquet").to_pydict()
    assert columns["normalized"] == [row.scores.tolist() for row in run.scores]
    assert columns["scores"] == [row.member_scores["loglik"].tolist() for row in run.scores]
    for row, kept in zip(run.scores, read_scores(run.out / "scores.parquet"), strict=True):
        assert (kept.order, kept.scores.tolist()) == (row.order, row.scores.tolist())
        assert {name: found.tolist() for name, found in kept.member_scores.items()} == {
            name: found.tolist() for name, found in row.member_scores.items()
        }


def test_normalization_without_effect_is_told(checkpoint, score):
    run = score(model=checkpoint("llama-gqa"), head="letters", normalize="byte")
    assert "--normalize byte has no effect on head letters" in run.record["warnings"]["messages"]
    assert "normalize" not in run.record["plan"]


@pytest.mark.parametrize("job", ["yes_no", "letters_rotate", "loglik"])
def test_prompts_are_the_joint_tokenization_of_their_text(job, checkpoint, score):
    model = checkpoint("llama-gqa")
    tokenizer = hf.AutoTokenizer.from_pretrained(model)
    for question in read_prompts(score(model=model, **JOBS[job]).out):
        for branch in question["branches"]:
            position, token = branch["targets"][-1]
            ids = branch["ids"] + [token] * (position == len(branch["ids"]))
            assert ids == tokenizer(branch["text"]).input_ids


@pytest.mark.parametrize("job", JOBS)
def test_stories260k(job, stories260k, reference, score):
    run = score(model=stories260k, **JOBS[job])
    expected = reference(stories260k).score(run.out, job)
    for row in run.scores:
        np.testing.assert_allclose(row.scores, expected[row.question.id], rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def many_questions(tmp_path_factory):
    """Every question with two contexts: enough scores for a stable error."""
    rows = [
        {**row, "id": f"{row['id']}-{number}", "context": other["context"]}
        for row in QUESTIONS
        for number, other in enumerate(QUESTIONS[::3])
    ]
    return write_jsonl(tmp_path_factory.mktemp("many") / "many.jsonl", rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_errs_at_most_twice_as_much_as_transformers(
    family, many_questions, checkpoint, reference, score
):
    model = checkpoint(family)
    ours, theirs = [], []
    for job in ("yes_no", "loglik"):
        run = score(model=model, questions=many_questions, dtype="bfloat16", **JOBS[job])
        exact = flatten(reference(model).score(run.out, job))
        ours.append(flatten(scores_by_id(run)) - exact)
        theirs.append(flatten(reference(model, dtype="bfloat16", attention=None).score(run.out, job)) - exact)
    # One rounding to bfloat16 of a log-probability of size 1.
    floor = 2**-9
    assert root_mean_square(ours) <= 2 * root_mean_square(theirs) + floor


def flatten(scores: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(scores.values()))


def root_mean_square(errors: list[np.ndarray]) -> float:
    return float(np.sqrt(np.mean(np.square(np.concatenate(errors)))))


NEUTRALIZED = {
    "mistral": {"sliding_window": None},
    "gemma2": {"attn_logit_softcapping": None},
    "gemma3": {"sliding_window": 4096},
    "phi3": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    },
}


@pytest.mark.parametrize("family", NEUTRALIZED)
def test_the_tiny_models_depend_on_what_makes_their_family_special(family):
    token_ids = torch.arange(3, 123)[None]
    logits = []
    for changes in ({}, NEUTRALIZED[family]):
        config = CONFIGS[family]()
        for name, value in changes.items():
            setattr(config, name, value)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomize_weights(model)
        with torch.no_grad():
            logits.append(model(token_ids).logits[0, -1])
    assert (logits[0] - logits[1]).abs().max() > 1000 * TOLERANCE


def test_run_json_agrees_with_what_was_returned(checkpoint, score):
    run = score(model=checkpoint("llama-gqa"), head="letters")
    assert json.loads((run.out / "run.json").read_text(encoding="utf-8")) == run.record
