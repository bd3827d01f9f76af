"""What is optimized, and what happens to gradients before a step."""

from __future__ import annotations

import pytest

from strata.training.loop.optimizer import parameters_by_name

from ..tiny_reader import TinyReader, tiny_config, train_tiny


def test_a_long_gradient_is_scaled_and_a_zero_bound_leaves_it(tmp_path):
    free = train_tiny(tiny_config(tmp_path, out=tmp_path / "free", max_grad_norm=0.0)).lines
    tight = train_tiny(tiny_config(tmp_path, out=tmp_path / "tight", max_grad_norm=1e-9)).lines
    assert tight[0]["grad_norm"] == free[0]["grad_norm"] > 1e-3
    assert tight[-1]["loss"] != free[-1]["loss"]


def test_parameters_of_one_name_are_refused(tmp_path):
    groups = TinyReader(tiny_config(tmp_path)).parameter_groups()
    with pytest.raises(ValueError, match="'weight' is in two groups"):
        parameters_by_name([*groups, groups[0]])
    with pytest.raises(ValueError, match="has none"):
        parameters_by_name([])
