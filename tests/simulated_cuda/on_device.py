"""pytest -p simulated_cuda.on_device --on-device cuda:0: tests that score on the CPU do so on a card."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on-device", default="", help="where tests score that would on the CPU")


@pytest.fixture(autouse=True)
def _on_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that name CPU devices are given cards instead, as many."""
    card = request.config.getoption("--on-device")
    if not card:
        return
    from strata.engine.config import ScoreConfig

    original = ScoreConfig.from_flags

    def from_flags(**flags: object) -> ScoreConfig:
        if flags.get("devices") == "cpu":
            flags["devices"] = card
        elif flags.get("devices") == "cpu,cpu":
            if torch.cuda.device_count() < 2:
                pytest.skip("needs two CUDA devices")
            flags["devices"] = "cuda:0,cuda:1"
        return original(**flags)

    monkeypatch.setattr(ScoreConfig, "from_flags", staticmethod(from_flags))
