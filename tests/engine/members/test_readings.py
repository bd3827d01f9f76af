"""What a member holds for its head: the score weight of its adapter, or else of the checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from strata.engine.adapters.lora import Adapter
from strata.engine.members.readings import MemberCosts, MemberReadings, score_shape
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader

from ..heads.scored_prompts import branch, prompt, table_of

PROMPTS = [prompt([branch(0, [1, 9], [(1, None)]), branch(1, [1, 2], [(1, None)])])]
BARE = Adapter(name="bare", path=Path("bare"), layers=(), score=None, num_bytes=0)
SCORED = replace(BARE, name="scored", score=torch.full((1, 64), 2.0))


@pytest.fixture
def with_score(checkpoint, tmp_path):
    """A checkpoint that holds a score weight [2, 32] of ones."""
    source = checkpoint("llama-gqa")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"score.weight": torch.ones(2, 32)}, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path)


def test_the_adapters_score_goes_first(with_score, checkpoint):
    assert score_shape(with_score, ()) == (2, 32)
    assert score_shape(with_score, (BARE,)) == (2, 32)
    assert score_shape(with_score, (SCORED,)) == (1, 64)
    assert score_shape(open_checkpoint(checkpoint("llama-gqa")), (BARE,)) is None


@pytest.mark.parametrize(("adapter", "expected"), [(None, 1.0), (BARE, 1.0), (SCORED, 2.0)])
def test_costs_are_the_bytes_that_a_score_weight_reads(adapter, expected, with_score):
    readings = MemberReadings(
        checkpoint=with_score,
        adapter=adapter,
        readouts=torch.tensor([[1.0], [2.0], [3.0]]),
        targets=table_of(PROMPTS),
        normalized=False,
        reader=TensorReader(),
        devices=[torch.device("cpu")],
    )
    assert (readings.score_weight() == expected).all()
    costs = MemberCosts(checkpoint=with_score, adapter=adapter)
    assert readings.reader.num_bytes_read == costs.score_weight_bytes()
    # In the order of the branches, not of the stream: token 2 comes before token 9 there.
    assert readings.hidden_states().tolist() == [[2.0], [1.0]]
