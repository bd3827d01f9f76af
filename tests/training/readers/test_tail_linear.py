"""The layer's last matrix without its product: the right gradient, and only where that is safe."""

from __future__ import annotations

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModel

from strata.training.readers.tail_linear import TailLinear, find_tail, gradient_only

from ...families import CONFIGS


@pytest.mark.parametrize("with_bias", [False, True])
def test_value_is_left_out_and_gradient_stays(with_bias):
    tail = TailLinear(nn.Linear(5, 3, bias=with_bias))
    x = torch.randn(4, 5, requires_grad=True)
    upstream = torch.randn(4, 3)
    tail(x).backward(upstream)
    expected, x.grad = x.grad, None
    with gradient_only(tail):
        output = tail(x)
    output.backward(upstream)
    assert (output == 0).all()
    assert torch.equal(x.grad, expected)
    assert tail(x).abs().sum() > 0


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("llama-gqa", True),
        ("phi3", True),
        ("qwen2", True),
        ("gemma2", False),
        ("olmo2", False),
        ("mixtral", False),
    ],
)
def test_only_where_nothing_depends_on_the_value(family, found):
    with init_empty_weights():
        layer = AutoModel.from_config(CONFIGS[family]()).layers[0]
    tail = find_tail(layer)
    assert (tail is not None) == found
    if found:
        assert layer.mlp.down_proj is tail
