"""`strata bench rows`: what is saved where rows share a question's text, and what the job would take.

`row_sharing_token_ratio` is the tokens of one tree of all rows over those of a tree a row, counted on the
trees themselves. `map_job_minutes_2xt4` is the predicted sweep of that many tokens on a profile, in int8 and
in float16: a prediction from the profile's rates, of which some are assumed (its `source` says which).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from strata.engine.config import PlanConfig
from strata.engine.machine.profile import load_profile
from strata.engine.machine.settings import MachineSettings
from strata.engine.tree.prefix_tree import build_prefix_tree
from strata.scripts.bench.record import (
    RESULTS,
    append_result,
    asked_settings,
    print_environment,
    print_table,
)
from strata.scripts.bench.rows.config import RowsBenchConfig
from strata.scripts.plan_shape import plan_shape


def run_rows_bench(config: RowsBenchConfig) -> int:
    """Counts, predicts, prints and appends the result."""
    print_environment()
    figures = count_tokens(config)
    figures |= predict_minutes(config, figures["tokens_a_row"])
    print_table([figures])
    append_result("rows", figures | {"config": asked_settings(config)}, RESULTS)
    return 0


def count_tokens(config: RowsBenchConfig) -> dict[str, Any]:
    """Tokens of one tree of all rows, a row, and over those of a tree a row."""
    rows = _rows(config)
    shared = build_prefix_tree([path for paths in rows for path in paths]).num_tokens
    apart = sum(build_prefix_tree(paths).num_tokens for paths in rows)
    return {
        "tokens": shared,
        "tokens_a_row": shared / len(rows),
        "row_sharing_token_ratio": shared / apart,
    }


def predict_minutes(config: RowsBenchConfig, tokens_a_row: float) -> dict[str, Any]:
    """Minutes of the job on the profile, its bottleneck and groups, by the dtype that is computed in."""
    asked = PlanConfig(
        questions=Path(str(config.rows)),
        shape=config.shape,
        profile=config.profile,
        tokens=round(tokens_a_row),
        options=config.candidates,
        option_tokens=config.candidate_tokens,
        storage=config.storage,
    )
    figures: dict[str, Any] = {}
    for dtype, key, machine in (
        ("int8", "map_job_minutes_2xt4", MachineSettings(dtype="int8")),
        ("float16", "map_job_minutes_2xt4_float16", MachineSettings(dtype="float16")),
    ):
        (found,) = plan_shape(replace(asked, machine=machine), load_profile(config.profile))
        plan = found.plan
        assert plan is not None, found.problem
        figures[key] = plan.predicted_s / 60
        figures[f"bottleneck_{dtype}"], figures[f"groups_{dtype}"] = plan.bottleneck, plan.num_groups
    return figures


def _rows(config: RowsBenchConfig) -> list[list[np.ndarray]]:
    """Of every row the token ids of each candidate's path; what differs differs from its first token on."""
    rows = []
    for row in range(config.rows):
        question, begin = row % config.questions, 2 * config.questions + row
        shared = np.r_[question, np.zeros(config.question_tokens - 1, np.int64)]
        text = np.r_[begin, np.zeros(config.row_tokens - 1, np.int64)]
        candidates = [
            np.r_[candidate, np.zeros(config.candidate_tokens - 1, np.int64)]
            for candidate in range(1, config.candidates + 1)
        ]
        rows.append([np.concatenate([shared, text, candidate]).astype(np.int32) for candidate in candidates])
    return rows
