"""FLOPs against torch's own counter and a dense mask, bytes against real weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from strata.engine.model.decoder import build_decoder
from strata.engine.model.weight_routes import route_layers
from strata.engine.plan.costs import ModelCosts, model_costs, sweep_flops, visible_pairs
from strata.engine.tree.prefix_tree import build_prefix_tree
from strata.engine.weights.checkpoint import open_checkpoint

from ...families import CONFIGS, FAMILIES, LAYERS_PER_MODEL, SHAPE
from ..tree.test_prefix_tree import ancestors, sequence_lists, walk_trie

NUM_TOKENS = 40


@pytest.fixture(scope="module")
def costs_of(checkpoint: Callable[..., Path]) -> Callable[..., ModelCosts]:
    """`costs_of(family, dtype=torch.float32)` of a tiny random checkpoint."""

    def build(family: str, dtype: torch.dtype = torch.float32, linear: str = "dense") -> ModelCosts:
        opened = open_checkpoint(checkpoint(family))
        decoder = build_decoder(opened.config, dtype)
        if linear == "int8":
            decoder.quantize_linears()
        return model_costs(opened.config, route_layers(opened, decoder, dtype), dtype)

    return build


@pytest.fixture(scope="module")
def llama_costs(costs_of: Callable[..., ModelCosts]) -> ModelCosts:
    return costs_of("llama-gqa")


def build_model(family: str) -> hf.PreTrainedModel:
    """The family's base model as transformers runs it."""
    config = CONFIGS[family]()
    return hf.AutoModel.from_config(config, attn_implementation="eager", experts_implementation="eager")


def counted_gemm_flops(model: hf.PreTrainedModel) -> int:
    """FLOPs of all linear layers on one sequence of NUM_TOKENS tokens, counted by torch as it runs them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(NUM_TOKENS)[None], use_cache=False)
    by_operator = counter.get_flop_counts()["Global"]
    return sum(by_operator.get(operator, 0) for operator in (torch.ops.aten.mm, torch.ops.aten.addmm))


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_weights_are_what_a_forward_multiplies_by(family, costs_of):
    costs = costs_of(family)
    assert costs.num_layers == LAYERS_PER_MODEL
    assert 2 * NUM_TOKENS * sum(costs.linear_weights) == counted_gemm_flops(build_model(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_gemm_flops_of_a_job_that_scores_every_token_are_a_whole_forward(family, costs_of):
    gemm, _ = sweep_flops(costs_of(family), np.arange(NUM_TOKENS), np.arange(NUM_TOKENS))
    assert gemm == counted_gemm_flops(build_model(family))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "phi3"])
def test_the_last_layer_makes_keys_and_values_of_unscored_tokens_only(family, costs_of):
    costs, layer = costs_of(family), build_model(family).layers[-1]
    key_value = layer.self_attn.k_proj.weight.numel() + layer.self_attn.v_proj.weight.numel()
    everything, _ = sweep_flops(costs, np.arange(NUM_TOKENS), np.arange(NUM_TOKENS))
    one_scored, _ = sweep_flops(costs, np.arange(NUM_TOKENS), np.array([NUM_TOKENS - 1]))
    assert everything - one_scored == 2 * (NUM_TOKENS - 1) * (costs.linear_weights[-1] - key_value)


def test_fused_projections_count_their_keys_and_values_alone(costs_of):
    head_dim = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
    expected = 2 * SHAPE["num_key_value_heads"] * head_dim * SHAPE["hidden_size"]
    assert costs_of("phi3").key_value_weights == expected


@settings(deadline=None, max_examples=60)
@given(
    sequence_lists(),
    st.lists(st.sampled_from((None, 1, 2, 5, 50)), min_size=LAYERS_PER_MODEL, max_size=LAYERS_PER_MODEL),
    st.randoms(use_true_random=False),
)
def test_attention_flops_count_the_visible_pairs_of_a_dense_mask(llama_costs, sequences, windows, random):
    tree, nodes = build_prefix_tree(sequences), walk_trie(sequences)
    scored = np.array(sorted(random.sample(range(tree.num_tokens), random.randint(1, tree.num_tokens))))
    masks = np.zeros((LAYERS_PER_MODEL, tree.num_tokens, tree.num_tokens), bool)
    for mask, window in zip(masks, windows, strict=True):
        for row in range(tree.num_tokens):
            mask[row, ancestors(nodes, row)[0 if window is None else -window :]] = True
    num_pairs = masks[:-1].sum() + masks[-1, scored].sum()
    costs = replace(llama_costs, windows=tuple(windows))
    _, attention = sweep_flops(costs, tree.position_ids, scored)
    # A pair is a product of H elements and a weighted sum of H elements, for each query head.
    head_dim = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
    assert attention == 2 * (head_dim + head_dim) * SHAPE["num_attention_heads"] * num_pairs


def test_visible_pairs_of_a_long_job_do_not_overflow():
    position_ids = np.full(3_000_000, 3_999, np.int32)
    assert visible_pairs(position_ids, None) == 3_000_000 * 4_000
    assert visible_pairs(position_ids, 1_000) == 3_000_000 * 1_000


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama-gqa", (None, None, None)),
        ("qwen2", (None, None, None)),
        ("mistral", (16, 16, 16)),
        ("gemma2", (16, None, 16)),
        ("gemma3", (16, None, 16)),
    ],
)
def test_windows_of_each_layer(family, windows, costs_of):
    assert costs_of(family).windows == windows


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_of_layers_as_stored_and_as_computed(family, costs_of):
    counts = [[weight.numel() for weight in layer.parameters()] for layer in build_model(family).layers]
    costs = costs_of(family, torch.bfloat16)
    assert costs.stored_bytes == tuple(4 * sum(layer) for layer in counts)
    # Every weight begins at a multiple of 64 bytes.
    assert costs.weight_bytes == tuple(sum(-(-2 * count // 64) * 64 for count in layer) for layer in counts)


@pytest.mark.parametrize(("family", "head_dim"), [("llama-gqa", 8), ("llama-mha", 8), ("qwen3", 16)])
def test_bytes_of_keys_and_values(family, head_dim, costs_of):
    num_kv_heads = CONFIGS[family]().num_key_value_heads
    key_values = torch.empty(2, num_kv_heads, 1, head_dim, dtype=torch.bfloat16)
    assert costs_of(family, torch.bfloat16).key_value_bytes_per_token == key_values.nbytes


def test_weights_to_decode_are_those_that_are_not_stored_as_they_are_computed(costs_of):
    layer = build_model("llama-gqa").layers[0]
    elements = sum(weight.numel() for weight in layer.parameters())
    matrices = sum(weight.numel() for weight in layer.parameters() if weight.dim() == 2)
    # The checkpoint is float32.
    assert costs_of("llama-gqa").decode_weights == ({},) * LAYERS_PER_MODEL
    assert costs_of("llama-gqa", torch.bfloat16).decode_weights[0] == {"plain": elements}
    assert costs_of("llama-gqa", linear="int8").decode_weights[0] == {"quantize": matrices}


def test_int8_linears_halve_the_weights_of_bfloat16(costs_of):
    dense, int8 = (costs_of("llama-gqa", torch.bfloat16, linear=linear) for linear in ("dense", "int8"))
    assert int8.linear == "int8"
    assert int8.stored_bytes == dense.stored_bytes
    assert int8.weight_bytes[0] < 0.7 * dense.weight_bytes[0]
    assert int8.activation_bytes_per_token > dense.activation_bytes_per_token
