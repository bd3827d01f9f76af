"""FLOP counts of the benches against a dense mask and the modules of transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from strata.engine.plan.shapes import (
    LLAMA2_7B,
    LLAMA2_13B,
    LLAMA2_70B,
    TINY,
    TINYLLAMA_1B,
    ModelShape,
    to_llama_config,
)
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.workloads.flops import (
    gemm_flops_per_token,
    layer_gemm_shapes,
    num_parameters,
    useful_flops,
)


def tree_mask(prefix_tokens: int, option_tokens: int, num_options: int) -> np.ndarray:
    """Who sees whom, [T, T] bool: prefix, then the options one behind another."""
    total = prefix_tokens + num_options * option_tokens
    group = np.array([-1] * prefix_tokens + [o for o in range(num_options) for _ in range(option_tokens)])
    same_path = (group[None, :] == -1) | (group[None, :] == group[:, None])
    return np.tril(np.ones((total, total), dtype=bool)) & same_path


def linear_flops(shape: ModelShape, names: tuple[str, ...]) -> int:
    """Two a weight of the named linear modules in one layer of the real model."""
    with torch.device("meta"):
        layer = AutoModelForCausalLM.from_config(to_llama_config(shape)).model.layers[0]
    modules = [module for name, module in layer.named_modules() if name.endswith(names)]
    return sum(2 * module.weight.numel() for module in modules)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (TINYLLAMA_1B, 1_100_048_384),
        (LLAMA2_7B, 6_738_415_616),
        (LLAMA2_13B, 13_015_864_320),
        (LLAMA2_70B, 68_976_648_192),
    ],
)
def test_num_parameters_are_the_published_ones(shape, expected):
    assert num_parameters(shape) == expected


@pytest.mark.parametrize("shape", [TINY, TINYLLAMA_1B])
def test_num_parameters_are_those_of_the_transformers_model(shape):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(to_llama_config(shape))
    assert num_parameters(shape) == sum(parameter.numel() for parameter in model.parameters())


def test_gemm_flops_are_two_a_linear_weight():
    assert gemm_flops_per_token(TINY) == linear_flops(TINY, ("_proj",))
    assert gemm_flops_per_token(TINY, "keys_values") == linear_flops(TINY, ("k_proj", "v_proj"))
    rest = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert gemm_flops_per_token(TINY, "rest") == linear_flops(TINY, rest)


@pytest.mark.parametrize(
    ("prefix", "option", "num_options", "scored_each"),
    [(17, 4, 5, 1), (1, 1, 2, 1), (0, 3, 2, 2), (9, 6, 3, 6)],
)
def test_useful_flops_count_what_a_dense_mask_shows(prefix, option, num_options, scored_each):
    size = QuestionSize(prefix_tokens=prefix, option_tokens=option, num_options=num_options)
    mask = tree_mask(prefix, option, num_options)
    num_tokens = len(mask)
    scored = np.array(
        [prefix + o * option + option - 1 - i for o in range(num_options) for i in range(scored_each)]
    )
    a_key = 4 * TINY.num_heads * TINY.head_dim
    every_layer = num_tokens * linear_flops(TINY, ("_proj",)) + a_key * mask.sum()
    last_layer = (
        num_tokens * linear_flops(TINY, ("k_proj", "v_proj"))
        + len(scored) * linear_flops(TINY, ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
        + a_key * mask[scored].sum()
    )
    assert (TINY.num_layers - 1) * every_layer + last_layer == useful_flops(
        TINY, size, scored_tokens=len(scored)
    )


@pytest.mark.parametrize("scored", [0, 4, 25])
def test_useful_flops_refuse_scored_tokens_that_do_not_fit(scored):
    size = QuestionSize(prefix_tokens=10, option_tokens=4, num_options=5)
    with pytest.raises(ValueError, match=f"scored_tokens {scored}: expected a multiple"):
        useful_flops(TINY, size, scored_tokens=scored)


def test_layer_gemms_sum_to_the_layer():
    llama = replace(TINY, num_heads=4, num_kv_heads=2, head_dim=24)
    gemms = {(k, n): 2 * k * n for _, k, n in layer_gemm_shapes(llama, 7)}
    counted = 2 * gemms[64, 48] + gemms[64, 96] + gemms[96, 64] + 2 * gemms[64, 176] + gemms[176, 64]
    assert counted == gemm_flops_per_token(llama)


def test_shape_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="num_heads 4 must be a multiple of num_kv_heads 3"):
        replace(TINY, num_kv_heads=3)
