"""Heads on several cards: each takes its turn with the readouts. Independent check: the CPU."""

from __future__ import annotations

import numpy as np

from strata.engine.model import vocabulary


def test_two_cards_share_the_vocabulary(checkpoint, score, accounts, monkeypatch):
    monkeypatch.setattr(vocabulary, "READOUT_ROWS", 3)
    monkeypatch.setitem(vocabulary.BLOCK_BYTES, "cuda", 100 * 32 * 4)
    settings = {"model": checkpoint("gemma2"), "head": "loglik"}
    expected = score(**settings)
    run = score(devices="cuda:0,cuda:1", **settings)
    for row, expected_row in zip(run.scores, expected.scores, strict=True):
        np.testing.assert_allclose(row.scores, expected_row.scores, rtol=0, atol=1e-4)
    products = [one for one in accounts.kernels if one.what in ("aten::mm", "aten::addmm")]
    threads = {one.thread for one in products if one.place.startswith("engine/model/vocabulary.py")}
    assert len(threads) == 2
