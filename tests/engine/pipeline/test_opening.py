"""Models are opened one at a time, whichever thread wants to: a search may load an encoder meanwhile."""

from __future__ import annotations

import threading

import pytest

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.model_files.opening import OPENING
from strata.engine.scorer import Scorer

from .demo_pipeline import DATA


@pytest.mark.usefixtures("fixed_rates")
def test_a_scorer_waits_for_whoever_opens_a_model():
    opened = threading.Event()

    def open_scorer():
        with Scorer.open([Member(model=DATA / "model")], MachineSettings(devices="cpu", dtype="float32")):
            opened.set()

    thread = threading.Thread(target=open_scorer)
    with OPENING:
        thread.start()
        assert not opened.wait(0.3)
    assert opened.wait(60)
    thread.join()
