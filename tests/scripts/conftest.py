"""A scoring run of the command line that succeeds, for the tests to spoil."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def given(checkpoint, questions, out) -> list[str]:
    """The arguments of a run that succeeds."""
    flags = {"--model": checkpoint("llama-gqa"), "--questions": questions, "--out": out}
    flags |= {"--head": "yes-no", "--devices": "cpu"}
    return ["score", *(str(text) for pair in flags.items() for text in pair)]
