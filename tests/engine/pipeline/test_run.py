"""Whole runs of pipelines on the bundled model, against runs of `strata score` and each other."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from strata.engine.config import ScoreConfig
from strata.engine.machine import product_rates
from strata.engine.machine.product_rates import ProductRates
from strata.engine.pipeline import run as run_module
from strata.engine.pipeline.config import read_pipeline
from strata.engine.pipeline.settings import RunSettings
from strata.engine.questions.question_file import read_questions
from strata.engine.results.tables import read_scores
from strata.engine.run.score import score_questions
from strata.engine.run.unreached import UNREACHED
from strata.engine.types import InputError, RunWarnings

from .demo_pipeline import CASCADE, DATA, MEMBER, find_passages, run, write_questions

pytestmark = pytest.mark.usefixtures("fixed_rates")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("asked") / "questions.csv")


@pytest.fixture(scope="module")
def alone(asked, tmp_path_factory, fixed_rates):
    """What `strata score` says of the questions without contexts, and with them."""
    folder = tmp_path_factory.mktemp("alone")
    questions = read_questions(asked, warnings=RunWarnings())
    with_contexts = folder / "with.jsonl"
    found = zip(questions, find_passages(questions, None), strict=True)
    with_contexts.write_text(
        "".join(
            json.dumps(
                {"id": q.id, "question": q.prompt, "options": q.options, "answer": q.answer, "context": c}
            )
            + "\n"
            for q, c in found
        )
    )
    rows = {}
    for name, file in (("closed", asked), ("open", with_contexts)):
        config = ScoreConfig.from_flags(
            model=DATA / "model",
            adapter=(DATA / "adapter",),
            questions=file,
            out=folder / name,
            dtype="float32",
            devices="cpu",
            probe=False,
        )
        rows[name] = {row.question.id: row for row in score_questions(config).scores}
    return rows


def test_a_cascade_gives_the_hard_half_to_the_better_member(asked, alone, tmp_path):
    found = run(tmp_path, CASCADE, asked)
    hardest = sorted(alone["closed"].values(), key=lambda row: row.margin)[:20]
    ids = {row.question.id for row in hardest}
    for row in found.scores:
        expected = alone["open" if row.question.id in ids else "closed"][row.question.id]
        np.testing.assert_allclose(row.scores, expected.scores, atol=2e-5)
        assert row.question.context == "", "contexts are a member's, not the file's"
    first, second = found.record["measured"]["stages"]
    assert (first["num_chosen"], second["num_chosen"], second["num_reached"]) == (40, 20, 20)
    assert second["chosen_after"]["map_at_3"] > second["chosen_before"]["map_at_3"] + 0.2
    assert found.record["metrics"]["map_at_3"] == second["metrics"]["map_at_3"]
    written = read_scores(tmp_path / "out" / "scores.parquet")
    for row, expected in zip(written, found.scores, strict=True):
        np.testing.assert_array_equal(row.scores, expected.scores)
        assert ("open" in row.member_scores) == (row.question.id in ids)
    submission = list(csv.DictReader((tmp_path / "out" / "submission.csv").open()))
    assert [row["id"] for row in submission] == [row.question.id for row in found.scores]
    assert (tmp_path / "out" / "report.html").is_file()


def test_members_of_one_base_are_averaged_by_weight(asked, alone, tmp_path):
    text = f"""\
retrieval: {{wiki: {{index: none}}}}
members:
  closed: {{{MEMBER}, context: none, weight: 1}}
  open: {{{MEMBER}, context: wiki, weight: 3}}
machine: {{dtype: float32, devices: cpu}}
"""
    found = run(tmp_path, text, asked)
    assert len(found.record["plan"]["units"]) == 1, "one sweep for both"
    for row in found.scores:
        closed, opened = (alone[name][row.question.id].probabilities for name in ("closed", "open"))
        np.testing.assert_allclose(row.probabilities, (closed + 3 * opened) / 4, atol=2e-5)


def stop_after(num_writes, monkeypatch):
    """Kills the run, as a lost machine would, when it writes the submission for the n-th time."""
    board = run_module.Scoreboard
    write, count = board.write_submission, iter(range(1000))

    def writing(self, *arguments):
        write(self, *arguments)
        if next(count) == num_writes:
            raise SystemError("the machine is lost")

    monkeypatch.setattr(board, "write_submission", writing)


@pytest.mark.parametrize("num_writes", [0, 1, 2])
def test_a_run_that_is_lost_goes_on(asked, tmp_path, monkeypatch, num_writes):
    whole = run(tmp_path, CASCADE, asked, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(num_writes, patch)
        with pytest.raises(SystemError):
            run(tmp_path, CASCADE, asked)
    rows = list(csv.DictReader((tmp_path / "out" / "submission.csv").open()))
    assert len(rows) == 40
    assert all(len(row["prediction"].split()) == 3 for row in rows)
    searched = []

    def find_again(questions, stopped):
        searched.append(len(questions))
        return find_passages(questions, stopped)

    resumed = run(tmp_path, CASCADE, asked, finder=find_again, resume=True)
    for row, expected in zip(resumed.scores, whole.scores, strict=True):
        np.testing.assert_array_equal(row.scores, expected.scores)
    if num_writes == 2:
        assert searched == []
        assert resumed.record["measured"]["seconds_by_phase"].get("sweep", 0.0) == 0.0


def test_a_finished_run_is_not_replaced_unasked(asked, tmp_path):
    run(tmp_path, CASCADE, asked, limit=3)
    with pytest.raises(InputError, match="--overwrite"):
        run(tmp_path, CASCADE, asked, limit=3)
    run(tmp_path, CASCADE, asked, limit=3, overwrite=True)
    with pytest.raises(InputError, match="another job"):
        run(tmp_path, CASCADE.replace("context: none", "context: none, max_tokens: 60"), asked, resume=True)


def test_a_deadline_that_has_passed_leaves_the_first_stage_or_guesses(asked, tmp_path):
    found = run(tmp_path, CASCADE + "deadline: 0.05s\n", asked)
    assert len(found.record["warnings"]["rows"][UNREACHED]["ids"]) == 40
    assert len(list(csv.DictReader((tmp_path / "out" / "submission.csv").open()))) == 40


def test_a_search_that_fails_ends_the_run(asked, tmp_path):
    def fail(questions, stopped):
        raise InputError("wiki: the index is gone")

    with pytest.raises(InputError, match="the index is gone"):
        run(tmp_path, CASCADE, asked, finder=fail)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_what_is_fitted_on_answers_serves_other_questions(tmp_path):
    text = CASCADE.replace("{least_sure: 0.5}", "{risk: 0.2}") + (
        "ensemble: {weights: fit}\ncalibration: temperature\n"
    )
    valid = write_questions(tmp_path / "valid.csv", num=120)
    test = write_questions(tmp_path / "test.csv", start=120, num=60, with_answers=False)
    with pytest.raises(InputError, match="no question has an answer"):
        run(tmp_path, text, test)
    fitted = run(tmp_path, text, valid, out=tmp_path / "valid")
    account = fitted.record["measured"]["fitted"]
    assert fitted.record["measured"]["stages"][1]["num_chosen"] == 120, "a risk is measured on all"
    assert account["calibration"]["after"]["nll"] <= account["calibration"]["before"]["nll"]
    assert account["weights"]["combination"]["weights"]["open"] > 0.9
    assert 0 < account["share of hard"]["share"] <= 1
    served = run(tmp_path, f"{text}fitted: {tmp_path / 'valid' / 'fitted.json'}\n", test)
    assert served.record["measured"]["weights"] == fitted.record["measured"]["weights"]
    chosen = served.record["measured"]["stages"][1]["num_chosen"]
    assert chosen <= 60
    assert not (tmp_path / "out" / "fitted.json").exists()
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"weights": {"closed": 1.0}, "calibration": None, "samples": {}}))
    with pytest.raises(InputError, match=r"broken.json: weights of closed; expected those of closed, open"):
        run(tmp_path, f"{text}fitted: {broken}\n", test, overwrite=True)


def test_a_run_that_was_to_be_fitted_ends_well_where_a_deadline_left_nothing_to_fit(asked, tmp_path):
    """Hours of scores are there by then: answers stay, fitted.json says what it lacks."""
    text = CASCADE.replace("{least_sure: 0.5}", "{risk: 0.2}") + (
        "ensemble: {weights: fit}\ncalibration: temperature\ndeadline: 0.05s\n"
    )
    found = run(tmp_path, text, asked)
    assert found.record["status"] == "done"
    told = [line for line in found.record["warnings"]["messages"] if "not fitted" in line]
    assert [line.partition(" not fitted")[0] for line in told] == ["weights", "share of hard", "calibration"]
    assert found.record["measured"]["weights"] == {"closed": 1.0, "open": 1.0}
    left = json.loads((tmp_path / "out" / "fitted.json").read_text())
    assert left == {"weights": {}, "calibration": None, "samples": {}, "account": {}}


def test_guesses_have_no_part_in_a_calibration(asked, tmp_path, monkeypatch):
    """Uniform guesses of what nobody scored would draw the temperature up."""
    only = CASCADE.partition("stages:")[0].replace(f"  open: {{{MEMBER}, context: wiki}}\n", "") + (
        "machine: {dtype: float32, devices: cpu}\ncalibration: temperature\n"
    )
    whole = run(tmp_path, only, asked, limit=8, out=tmp_path / "whole")
    score_unit = run_module.score_unit

    def score_eight(unit, asked_for, *others):
        yield from score_unit(unit, replace(asked_for, chosen=asked_for.chosen[:8]), *others)

    monkeypatch.setattr(run_module, "score_unit", score_eight)
    cut = run(tmp_path, only, asked)
    assert len(cut.record["warnings"]["rows"][UNREACHED]["ids"]) == 32
    mine, expected = (found.record["measured"]["fitted"]["calibration"]["after"] for found in (cut, whole))
    assert mine["num_answered"] == expected["num_answered"] == 8
    assert mine["nll"] == pytest.approx(expected["nll"])


def test_what_an_earlier_run_fitted_does_not_outlive_it(asked, tmp_path):
    fits = CASCADE + "ensemble: {weights: fit}\n"
    run(tmp_path, fits, asked, limit=12)
    left = tmp_path / "out" / "fitted.json"
    run(tmp_path, f"{fits}fitted: {left}\n", asked, limit=12, overwrite=True)
    assert left.is_file(), "the run goes by it"
    run(tmp_path, CASCADE, asked, limit=3, overwrite=True)
    assert not left.exists()


def test_a_resumed_run_computes_in_what_it_began_in(asked, tmp_path, monkeypatch):
    """A busy machine may measure otherwise: half of the scores would be of another dtype."""
    text = CASCADE.replace("dtype: float32, ", "")
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(SystemError):
            run(tmp_path, text, asked)
    begun = json.loads((tmp_path / "out" / "run.json").read_text())["plan"]["units"]
    slow = ProductRates(flop_per_s={"float32": 9e11, "bfloat16": 1e11, "int8": 1e11})
    monkeypatch.setattr(product_rates, "_product_rates", lambda path, measured_on: slow)
    resumed = run(tmp_path, text, asked, resume=True).record["plan"]["units"]
    assert [unit["plan"]["dtype"] for unit in begun] == ["bfloat16"] * 2
    assert [unit["plan"]["dtype"] for unit in resumed] == ["bfloat16"] * 2


def test_forecasts_open_no_weights(asked, tmp_path, monkeypatch):
    from strata.engine.jobs.job import Session
    from strata.engine.pipeline.fitted import Fitted
    from strata.engine.pipeline.forecast import forecast

    path = tmp_path / "run.yaml"
    path.write_text(CASCADE)
    questions = read_questions(asked, warnings=RunWarnings())
    monkeypatch.setattr("strata.engine.weights.tensor_reader.TensorReader.read_into", None)
    units = forecast(read_pipeline(path), questions, Session(folder=tmp_path), fitted=Fitted())
    assert [unit.num_questions for unit in units] == [40, 20]
    assert units[1].plan["tokens_computed"] > 20 * 1000, "contexts of the length of their budget"
    assert all(unit.seconds > 0 for unit in units)


def test_settings(asked, tmp_path):
    with pytest.raises(InputError, match="--profile"):
        RunSettings(config=asked, questions=asked, profile="h100").check()
    with pytest.raises(InputError, match="--limit"):
        RunSettings(config=asked, questions=asked, limit=0).check()
    settings = RunSettings(config=asked, questions=asked, dry_run=True)
    assert settings.num_questions == 10
    assert replace(settings, limit=3).num_questions == 3
