"""A dry run of `strata bench gpu`: the first run on a card is not spent on its own mistakes."""

from __future__ import annotations

import json

import pytest

from strata.scripts.cli import main

SKIPPED = {"correct": {"gpu_tests"}, "fast": {"calibration"}}


@pytest.mark.parametrize("part", SKIPPED)
def test_every_stage_runs(part, tmp_path, fixed_rates):
    status = main(["bench", "gpu", part, "--tiny", "--folder", str(tmp_path)])
    stages = json.loads((tmp_path / f"{part}.json").read_text(encoding="ascii"))["stages"]
    verdicts = {name: stage["verdict"] for name, stage in stages.items()}
    assert verdicts == {name: "skipped" if name in SKIPPED[part] else "ok" for name in stages}, stages
    assert status == 0
