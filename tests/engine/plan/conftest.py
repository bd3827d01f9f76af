"""Fixtures of the planner's tests: costs to put other sizes into."""

from __future__ import annotations

import pytest

from strata.engine.plan.costs import ModelCosts

from .small_plans import read_tiny_costs


@pytest.fixture(scope="session")
def tiny_costs(checkpoint) -> ModelCosts:
    return read_tiny_costs(checkpoint)
