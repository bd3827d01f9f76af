"""A run of `strata score` that succeeds, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def given(checkpoint: Callable[..., Path], questions: Path, out: Path) -> list[str]:
    """The arguments of a run that succeeds."""
    flags = {"--model": checkpoint("llama-gqa"), "--questions": questions, "--out": out}
    flags |= {"--head": "yes-no", "--devices": "cpu"}
    return ["score", *(str(text) for pair in flags.items() for text in pair)]
