"""The checker sees a sweep's ordering bugs, and none in the sweep as it is."""

from __future__ import annotations

import pytest
from simulated_cuda.planted_bugs import BUGS, planted

SWEEP = {
    "head": "yes-no",
    "devices": "cuda:0,cuda:1",
    "resident_layers": 0,
    "micro_batch_tokens": 64,
    "hidden_store": "ram",
}


@pytest.fixture(autouse=True)
def no_upload_hides_a_missing_wait(card_settings):
    card_settings.uploads_wait = False


def test_a_sweep_has_no_race(checkpoint, score, accounts):
    score(model=checkpoint("llama-gqa"), **SWEEP)
    assert accounts.accesses > 1000


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name, checkpoint, score, accounts):
    with planted(BUGS[name]):
        score(model=checkpoint("llama-gqa"), **SWEEP)
    assert accounts.races
    accounts.races.clear()
