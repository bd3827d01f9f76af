"""Fixtures of the encoder tests: tiny encoders made once a session, and a scorer of the usual questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from strata.engine.config import ScoreConfig
from strata.engine.run.score import ScoreRun, score_questions

from .tiny_encoder import build_encoder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("encoders")

    def build(family: str, with_head: bool = True) -> Path:
        folder = root / f"{family}-{with_head}"
        return folder if folder.is_dir() else build_encoder(family, folder, with_head=with_head)

    return build


@pytest.fixture
def score(tmp_path: Path, questions: Path, fixed_rates: None) -> Callable[..., ScoreRun]:
    numbers = iter(range(1000))

    def run(model: Path, **settings: object) -> ScoreRun:
        defaults = {"questions": questions, "out": tmp_path / f"run{next(numbers)}", "devices": "cpu"}
        return score_questions(ScoreConfig.from_flags(model=model, **(defaults | settings)))

    return run
