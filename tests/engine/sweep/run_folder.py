"""Owns what a run that did not end well must have left in its folder."""

from __future__ import annotations

import json
from pathlib import Path


def assert_run_ended(out: Path, status: str, error: str, message: str) -> None:
    """run.json tells how the run ended, and nothing in the folder looks like a result."""
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == status
    assert record["error"]["type"] == error
    assert message in record["error"]["message"]
    assert not {path.name for path in out.iterdir()} & {"submission.csv", "scores.parquet", "report.html"}
