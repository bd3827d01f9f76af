"""Hosts on which something does not work: scores are right all the same. Independent check: the CPU."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from strata.scripts.cli import main

SWEEP = {"head": "yes-no", "micro_batch_tokens": 64, "resident_layers": 0}


@pytest.fixture
def expected(checkpoint, score):
    return score(model=checkpoint("llama-gqa"), head="yes-no")


def assert_same(run, expected) -> None:
    for row, expected_row in zip(run.scores, expected.scores, strict=True):
        np.testing.assert_allclose(row.scores, expected_row.scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_copies_from_card_to_card_leave_zeros(groups, checkpoint, score, card_settings, expected):
    card_settings.peers_are_broken = True
    run = score(model=checkpoint("llama-gqa"), devices="cuda:0,cuda:1", num_groups=groups, **SWEEP)
    assert_same(run, expected)


def test_memory_cannot_be_pinned_where_it_lies(checkpoint, score, card_settings, expected, caplog):
    card_settings.refuses_registration = True
    with caplog.at_level(logging.WARNING):
        run = score(model=checkpoint("llama-gqa"), devices="cuda:0", hidden_store="ram", **SWEEP)
    assert_same(run, expected)
    assert "rounded up to a power of two" in caplog.text


@pytest.mark.parametrize(("dtype", "warns"), [("int8", True), ("auto", False)])
def test_a_plan_in_int8_on_a_card_that_never_measured_it(
    dtype, warns, checkpoint, questions, fixed_rates, capsys
):
    """A plan takes nothing for fast that this very card has not measured; auto never takes int8."""
    model = str(checkpoint("llama-gqa"))
    asked = ["plan", "--model", model, "--questions", str(questions), "--devices", "cuda:0", "--dtype", dtype]
    assert main(asked) == 0
    captured = capsys.readouterr()
    assert ("and int8" in captured.out) == warns
    assert ("int8 was never measured on simulated card" in captured.err) == warns
