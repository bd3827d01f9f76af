"""The bench of rows: tokens against arithmetic, minutes against the plan's own."""

from __future__ import annotations

import pytest

from strata.scripts.bench.rows import rows
from strata.scripts.bench.rows.config import RowsBenchConfig


def test_tokens_are_those_of_the_arithmetic():
    config = RowsBenchConfig(
        rows=60, questions=3, question_tokens=20, row_tokens=7, candidates=4, candidate_tokens=5
    )
    found = rows.count_tokens(config)
    assert found["tokens"] == 3 * 20 + 60 * (7 + 4 * 5)
    assert found["row_sharing_token_ratio"] == pytest.approx(found["tokens"] / (60 * (20 + 7 + 20)))


def test_int8_is_predicted_to_be_faster_than_float16():
    found = rows.predict_minutes(RowsBenchConfig(), tokens_a_row=155.2)
    assert 20 < found["map_job_minutes_2xt4"] < found["map_job_minutes_2xt4_float16"] < 90
    assert found["bottleneck_int8"] == "compute"
