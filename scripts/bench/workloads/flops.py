"""What Llama-shaped models hold and compute: parameters, GEMMs, useful FLOPs. Knows no weights.

Legend: T tokens, N query heads, K kv heads, H head dim, D model dim, F feed-forward dim, V vocabulary.
A multiply and an add count as two FLOPs. Norms, rotary embedding, softmax, embedding lookup and the few
vocabulary rows a score needs are left out: together they are below one percent of a layer.
"""

from __future__ import annotations

from typing import Literal

from strata.engine.plan.shapes import ModelShape
from strata.scripts.bench.configs import QuestionSize

LayerPart = Literal["full", "keys_values", "rest"]


def num_parameters(shape: ModelShape) -> int:
    """All parameters: L * (linear layers + 2 D) + final norm D + embedding V D + vocabulary head V D."""
    layer = _num_linear_parameters(shape, "full") + 2 * shape.hidden_size
    return shape.num_layers * layer + shape.hidden_size + 2 * shape.vocab_size * shape.hidden_size


def gemm_flops_per_token(shape: ModelShape, layer: LayerPart = "full") -> int:
    """FLOPs of one decoder layer's linear layers for one token: two a parameter.

    Args:
        shape: The model.
        layer: `full` is D*N*H (queries) + 2*D*K*H (keys, values) + N*H*D (output) + 3*D*F (MLP) parameters;
            `keys_values` the second term alone, which is all that the last layer owes a token that is not
            scored; `rest` all others.
    """
    return 2 * _num_linear_parameters(shape, layer)


def layer_gemm_shapes(shape: ModelShape, num_tokens: int) -> list[tuple[int, int, int]]:
    """The distinct (M, K, N) of one layer's GEMMs over M = num_tokens rows; weights are [K, N]."""
    query_dim, kv_dim = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    widths = [
        (shape.hidden_size, query_dim),
        (shape.hidden_size, kv_dim),
        (query_dim, shape.hidden_size),
        (shape.hidden_size, shape.intermediate_size),
        (shape.intermediate_size, shape.hidden_size),
    ]
    return [(num_tokens, k, n) for k, n in dict.fromkeys(widths)]


def useful_flops(shape: ModelShape, size: QuestionSize, scored_tokens: int) -> int:
    """FLOPs that one question's prefix tree needs when nothing is computed twice or for nothing.

    With P prefix tokens, O options of L tokens, S scored tokens (the last S / O of each option), T = P + O*L:

        attention(keys) = 4 * N * H * keys         a query meets a key in 2*N*H FLOPs, its value in as many
        causal(start, n) = sum over i < n of (start + i + 1)       keys seen by n tokens after `start` others
        layers before the last:  T * gemm(full) + attention(causal(0, P) + O * causal(P, L))
        last layer:  T * gemm(keys_values) + S * gemm(rest) + attention(O * causal(P + L - S/O, S/O))

    Args:
        shape: The model.
        size: P, L and O.
        scored_tokens: S, tokens a question whose readout is wanted; a multiple of O.

    Raises:
        ValueError: S is no multiple of O, or more than the O * L option tokens.
    """
    prefix_tokens, option_tokens, num_options = size.prefix_tokens, size.option_tokens, size.num_options
    if scored_tokens % num_options or not 0 < scored_tokens <= num_options * option_tokens:
        raise ValueError(
            f"scored_tokens {scored_tokens}: expected a multiple of num_options {num_options}, "
            f"from {num_options} to {num_options * option_tokens}"
        )
    scored_each = scored_tokens // num_options
    tree_keys = _causal_keys(0, prefix_tokens) + num_options * _causal_keys(prefix_tokens, option_tokens)
    scored_keys = num_options * _causal_keys(prefix_tokens + option_tokens - scored_each, scored_each)

    full_layer = size.num_tokens * gemm_flops_per_token(shape) + _attention_flops(shape, tree_keys)
    last_layer = (
        size.num_tokens * gemm_flops_per_token(shape, "keys_values")
        + scored_tokens * gemm_flops_per_token(shape, "rest")
        + _attention_flops(shape, scored_keys)
    )
    return (shape.num_layers - 1) * full_layer + last_layer


def _num_linear_parameters(shape: ModelShape, layer: LayerPart) -> int:
    keys_values = 2 * shape.hidden_size * shape.num_kv_heads * shape.head_dim
    queries_output = 2 * shape.hidden_size * shape.num_heads * shape.head_dim
    mlp = 3 * shape.hidden_size * shape.intermediate_size
    return {
        "full": keys_values + queries_output + mlp,
        "keys_values": keys_values,
        "rest": queries_output + mlp,
    }[layer]


def _attention_flops(shape: ModelShape, num_visible_keys: int) -> int:
    return 4 * shape.num_heads * shape.head_dim * num_visible_keys


def _causal_keys(start: int, num_tokens: int) -> int:
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2
