"""How many columns of an input stay apart: counted in a layer's first micro-batches, then taken as known.

Independent check: rounding by the definition with the columns of largest values, found by sorting.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strata.engine.machine import machine
from strata.engine.model import int8_linears
from strata.engine.model.int8_linears import SETTLED_TOKENS, SharedActivations
from strata.kernels.int8_linear.quantize import quantize_activations

from ...families import LAYERS_PER_MODEL
from ..sweep.test_overflow import altered, overflow_mlp
from .test_int8 import make_adapter

__all__ = ["altered"]

FIRST, OTHER = nn.Identity(), nn.Identity()
INPUTS = 4
"""Of a Llama's layer: what q, k and v read, o, gate and up, down."""


def rows(num: int, loud: tuple[int, ...] = (), seed: int = 0) -> torch.Tensor:
    """[1, num, 64]; columns are the louder, the earlier they are named."""
    x = torch.rand(1, num, 64, generator=torch.Generator().manual_seed(seed)) + 1
    for place, column in enumerate(loud):
        x[..., column] *= 100 - place
    return x


def columns_of(shared: SharedActivations, x: torch.Tensor, reader: nn.Module = FIRST) -> list[int]:
    return shared.quantize(x, reader).outlier_columns.tolist()


def test_later_micro_batches_have_as_many_as_the_first_had() -> None:
    shared = SharedActivations()
    shared.begin(is_first=True)
    assert columns_of(shared, rows(SETTLED_TOKENS, (9, 5))) == [5, 9]
    shared.begin(is_first=False)
    assert columns_of(shared, rows(3, (40, 5, 30))) == [5, 40]
    shared.begin(is_first=False)
    quiet = rows(3)
    largest = quiet[0].amax(dim=0).argsort(descending=True)[:2].sort().values
    assert columns_of(shared, quiet) == largest.tolist()


def test_few_tokens_settle_nothing() -> None:
    shared = SharedActivations()
    for index, loud in enumerate([(1, 2, 3), (), (7,)]):
        shared.begin(is_first=index == 0)
        num_tokens = SETTLED_TOKENS // 2 - 1 if index < 2 else 2
        assert columns_of(shared, rows(num_tokens, loud)) == list(loud)
    shared.begin(is_first=False)
    assert len(columns_of(shared, rows(8))) == 3


def test_an_empty_input_counts_for_nothing() -> None:
    shared = SharedActivations()
    shared.begin(is_first=True)
    assert columns_of(shared, rows(0)) == []
    shared.begin(is_first=False)
    assert columns_of(shared, rows(SETTLED_TOKENS, (3,))) == [3]
    shared.begin(is_first=False)
    assert columns_of(shared, rows(0)) == []


@pytest.mark.parametrize("ends", ["first", "forget"])
def test_another_layer_begins_anew(ends: str) -> None:
    shared = SharedActivations()
    shared.begin(is_first=True)
    columns_of(shared, rows(SETTLED_TOKENS, (9, 5)))
    if ends == "forget":
        shared.forget()
    else:
        shared.begin(is_first=True)
    assert columns_of(shared, rows(8, (1, 2, 3))) == [1, 2, 3]


def test_what_was_not_announced_is_looked_through_each_time() -> None:
    shared = SharedActivations()
    assert columns_of(shared, rows(SETTLED_TOKENS, (9, 5))) == [5, 9]
    assert columns_of(shared, rows(SETTLED_TOKENS, (1, 2, 3))) == [1, 2, 3]


def test_an_undone_micro_batch_counts_for_nothing() -> None:
    shared = SharedActivations()
    shared.begin(is_first=True)
    spoiled = rows(SETTLED_TOKENS, (9, 5))
    spoiled[0, 0, 0] = float("nan")
    assert columns_of(shared, spoiled) == []
    shared.undo()
    assert columns_of(shared, rows(SETTLED_TOKENS, (9, 5))) == [5, 9]
    shared.begin(is_first=False)
    columns_of(shared, rows(8), OTHER)
    shared.undo()
    assert len(columns_of(shared, rows(8))) == 2
    assert columns_of(shared, rows(8, (1, 2, 3)), OTHER) == [1, 2, 3]


def test_inputs_do_not_mix_and_one_that_two_read_is_one() -> None:
    shared = SharedActivations()
    shared.begin(is_first=True)
    x = rows(SETTLED_TOKENS, (9, 5))
    assert shared.quantize(x, FIRST) is shared.quantize(x, OTHER)
    columns_of(shared, rows(SETTLED_TOKENS, (7,)), OTHER)
    shared.begin(is_first=False)
    assert len(columns_of(shared, rows(8))) == 2
    assert len(columns_of(shared, rows(8), OTHER)) == 1


@pytest.fixture
def asked(monkeypatch) -> list[tuple[torch.dtype, int | None]]:
    """Dtypes of the inputs that a run rounds, and how many columns it wants; one token settles all."""
    calls = []

    def note(x: torch.Tensor, num_outliers: int | None):
        calls.append((x.dtype, num_outliers))
        return quantize_activations(x, num_outliers=num_outliers)

    monkeypatch.setattr(int8_linears, "quantize_activations", note)
    monkeypatch.setattr(int8_linears, "SETTLED_TOKENS", 1)
    return calls


def num_searches(asked) -> int:
    return sum(num_outliers is None for _, num_outliers in asked)


INT8 = {"dtype": "int8", "int8_check_questions": 0, "micro_batch_tokens": 32, "resident_layers": 0}
PER_SWEEP = LAYERS_PER_MODEL * INPUTS + 1
"""Searches: in the last layer keys and values of all rows come first, so that q, k and v read two inputs."""


def test_a_sweep_looks_for_columns_once_a_layer(asked, checkpoint, score) -> None:
    run = score(model=checkpoint("llama-gqa"), **INT8)
    assert run.record["plan"]["num_micro_batches"] > 4
    assert num_searches(asked) == PER_SWEEP
    assert len(asked) > 4 * num_searches(asked)


@pytest.mark.parametrize("settings", [{"num_groups": 2}, {"devices": "cpu,cpu"}], ids=str)
def test_groups_and_lanes_count_for_themselves(settings, asked, checkpoint, score) -> None:
    score(model=checkpoint("llama-gqa"), **INT8, **settings)
    assert num_searches(asked) == 2 * PER_SWEEP


def test_members_count_for_themselves(asked, checkpoint, score, tmp_path) -> None:
    model = checkpoint("llama-gqa")
    score(model=model, adapter=tuple(make_adapter(model, tmp_path / f"lora{n}", n) for n in (1, 2)), **INT8)
    assert num_searches(asked) == 2 * PER_SWEEP


def test_what_overflowed_settles_nothing(asked, altered, score, monkeypatch) -> None:
    resolve = machine.resolve_dtype
    monkeypatch.setattr(
        machine,
        "resolve_dtype",
        lambda setting, *rest: torch.float16 if setting == "int8" else resolve(setting, *rest),
    )
    run = score(model=altered(overflow_mlp(0)), **INT8)
    assert run.record["measured"]["float32_micro_batches"] == run.record["plan"]["num_micro_batches"]
    in_float32 = [num_outliers for dtype, num_outliers in asked if dtype == torch.float32]
    assert in_float32[:INPUTS] == [None] * INPUTS
    assert num_searches(asked) < len(asked) / 4
