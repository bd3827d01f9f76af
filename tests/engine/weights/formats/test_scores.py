"""Scores from quantised checkpoints: those of transformers holding the same decoded weights, however run."""

import json
from collections import Counter

import numpy as np
import pytest

from strata.engine.weights.tensor_reader import TensorReader
from strata.scripts.cli import main

from ....families import LAYERS_PER_MODEL
from .layouts import LAYOUTS

# Both sides are float32 with the same weights and differ in summation order only.
TOLERANCE = 1e-4
# The layout of a run changes the shapes of the GEMMs, hence the order in which they sum.
LAYOUT_TOLERANCE = 1e-5
STREAMED = {"resident_layers": 0, "num_groups": 2, "micro_batch_tokens": 64}
RUNS = {
    "streamed": STREAMED,
    "one-resident": STREAMED | {"resident_layers": 1, "hidden_store": "disk"},
    "two-devices": STREAMED | {"devices": "cpu,cpu"},
}
ONE_A_KERNEL = (
    "bitsandbytes-fp4-nested",
    "gptq-act-order",
    "awq",
    "packed-asymmetric",
    "int8-channel",
    "fp8-block",
)
EXPERT_LAYOUTS = ("gptq", "awq", "packed", "bitsandbytes-nf4", "bitsandbytes-8bit", "fp8-block")


def scores_by_id(run) -> dict[str, np.ndarray]:
    return {row.question.id: row.scores for row in run.scores}


def assert_scores_equal(actual, expected, tolerance: float = TOLERANCE) -> None:
    assert list(actual) == list(expected)
    for question_id, scores in expected.items():
        np.testing.assert_allclose(actual[question_id], scores, rtol=0, atol=tolerance, err_msg=question_id)
    widest = max(np.ptp(scores) for scores in expected.values())
    assert widest > 100 * TOLERANCE, "the options' scores hardly differ: the comparison says nothing"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_the_decoded_weights(layout, quantized, reference, score):
    made = quantized(layout)
    run = score(model=made.path, head="yes-no")
    assert_scores_equal(scores_by_id(run), reference(made.decoded).score(run.out, "yes_no"))


@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_experts_quantised_one_by_one(layout, quantized, reference, score):
    made = quantized(layout, "mixtral")
    assert any("experts.3.w2" in name for name in made.weights)
    run = score(model=made.path, head="yes-no")
    assert_scores_equal(scores_by_id(run), reference(made.decoded).score(run.out, "yes_no"))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layout", ONE_A_KERNEL)
def test_scores_do_not_depend_on_how_layers_are_read(layout, run, quantized, score):
    model = quantized(layout).path
    resident = score(model=model, head="letters", resident_layers=LAYERS_PER_MODEL, num_groups=1)
    other = score(model=model, head="letters", **RUNS[run])
    assert_scores_equal(scores_by_id(other), scores_by_id(resident), LAYOUT_TOLERANCE)
    assert other.record["measured"]["bytes_read"] == other.record["plan"]["bytes_read"]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("family", ["llama-gqa", "mixtral"])
def test_a_layout_gives_the_very_scores_of_plain_weights(family, run, quantized, score):
    made = quantized("awq", family)
    ours, plain = (score(model=model, head="yes-no", **RUNS[run]) for model in (made.path, made.decoded))
    for question_id, scores in scores_by_id(plain).items():
        np.testing.assert_array_equal(scores_by_id(ours)[question_id], scores)


def test_two_devices_share_one_read(quantized, score, monkeypatch):
    # Embedding rows aside: which of them a group reads depends on where groups are cut.
    reads: Counter[tuple[str, int]] = Counter()
    original = TensorReader.read_into

    def read_into(self, tensor, buffer, first_byte=0):
        reads[tensor.name, len(buffer)] += "embed_tokens" not in tensor.name
        original(self, tensor, buffer, first_byte)

    monkeypatch.setattr(TensorReader, "read_into", read_into)
    seen = []
    for devices in ("cpu", "cpu,cpu"):
        reads.clear()
        run = score(model=quantized("gptq").path, head="yes-no", **(STREAMED | {"devices": devices}))
        assert run.record["measured"]["bytes_read"] == run.record["plan"]["bytes_read"]
        seen.append(+reads)
    assert seen[0] == seen[1]
    assert {count for (name, _), count in seen[0].items() if ".layers." in name} == {STREAMED["num_groups"]}


@pytest.mark.parametrize("layout", ["bitsandbytes-8bit", "int8-channel"])
def test_int8_runs_on_stored_codes_err_little(layout, quantized, score):
    # Only activations are rounded, to one part in 127; on such tiny matrices hardly any of it averages out.
    model = quantized(layout).path
    exact = scores_by_id(score(model=model, head="loglik"))
    run = score(model=model, head="loglik", dtype="int8", resident_layers=0, int8_check_questions=0)
    found = scores_by_id(run)
    errors = np.concatenate([found[key] - exact[key] for key in exact])
    spread = np.concatenate([exact[key] - exact[key].mean() for key in exact])
    assert np.sqrt(np.mean(errors**2)) < 0.1 * spread.std()
    assert np.any(errors != 0), "nothing was computed in int8"


def test_bytes_read_are_a_fraction_of_the_plain_ones(quantized, score):
    made = quantized("int8-tensor")
    packed, plain = (
        score(model=model, head="yes-no", resident_layers=0).record["measured"]["bytes_read"]
        for model in (made.path, made.decoded)
    )
    decoded = sum(weight.numel() for weight in made.weights.values())
    # Four bytes a weight become one, and each weight has one bfloat16 scale.
    assert plain - packed == 3 * decoded - 2 * len(made.weights)


@pytest.mark.usefixtures("fixed_rates")
def test_command_line_in_bfloat16(quantized, reference, questions, tmp_path):
    made, out = quantized("gptq"), tmp_path / "out"
    flags = ["--devices", "cpu", "--dtype", "bfloat16", "--head", "yes-no", "--save-prompts"]
    paths = ["--model", str(made.path), "--questions", str(questions), "--out", str(out)]
    assert main(["score", *paths, *flags]) == 0
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["plan"]["dtype"] == "bfloat16"
    ours, theirs = bfloat16_errors(out, made, reference)
    # One rounding to bfloat16 of a log-probability of size 1.
    assert ours <= 2 * theirs + 2**-9


def bfloat16_errors(out, made, reference) -> tuple[float, float]:
    """Root mean square of our and of transformers' bfloat16 scores less transformers' float32 ones."""
    import pyarrow.parquet as pq

    exact = reference(made.decoded).score(out, "yes_no")
    rounded = reference(made.decoded, dtype="bfloat16", attention=None).score(out, "yes_no")
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    ours = {row["id"]: np.array(row["scores"]) for row in rows}
    return tuple(
        float(np.sqrt(np.mean(np.concatenate([found[key] - exact[key] for key in exact]) ** 2)))
        for found in (ours, rounded)
    )
