"""The decoder without weights: what a layer leaves behind, and what a keys-only pass skips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from strata.engine.model.attention import AttentionCall
from strata.engine.model.decoder import Decoder, build_decoder
from strata.engine.tree.lanes import MicroBatch
from strata.engine.tree.prefix_tree import PrefixTree, build_prefix_tree
from strata.engine.tree.tiles import build_scored_tiles, build_tiles
from strata.kernels.prefix_attention.tile import Tile, TileCut

from ...families import CONFIGS, FAMILIES, SHAPE, randomize_weights

EIGHT_ROWS = TileCut(max_rows=8, joins=True)

CPU = torch.device("cpu")

# A chain of 25 tokens, longer than the families' windows of 16, and two branches; the first 10 are carried.
SEQUENCES = ([*range(25), 40, 41], [*range(25), 50])

NUM_CARRIED = 10


@dataclass(frozen=True, kw_only=True)
class LayerRun:
    """A decoder with its tables, one layer's weights, and a micro-batch to run."""

    decoder: Decoder
    tree: PrefixTree
    batch: MicroBatch
    carried: torch.Tensor
    hidden_states: torch.Tensor
    position_ids: torch.Tensor

    def call(self, **settings: object) -> AttentionCall:
        defaults = {
            "tiles_of": lambda cut, window: build_tiles(self.tree, self.batch, EIGHT_ROWS, window),
            "carried": self.carried,
        }
        return AttentionCall(**(defaults | settings))


def random_weights(config: hf.PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Weights of the family's base model, by name."""
    model = hf.AutoModel.from_config(config, dtype=torch.float32)
    randomize_weights(model)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def layer_weights(weights: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    prefix = f"layers.{layer}."
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def make_layer_run(family: str, layer: int) -> LayerRun:
    tree = build_prefix_tree([np.array(sequence) for sequence in SEQUENCES])
    rows = ((NUM_CARRIED, tree.num_tokens),)
    num_rows = tree.num_tokens - NUM_CARRIED
    batch = MicroBatch(
        rows=rows,
        carried=((0, NUM_CARRIED),),
        first_row=0,
        num_rows=num_rows,
        scored_rows=np.array([3, num_rows - 2, num_rows - 1]),
        kept=(),
    )
    decoder = build_decoder(CONFIGS[family](), torch.float32)
    decoder.prepare_rope(int(tree.position_ids.max()), CPU, torch.float32)
    decoder.assign_layer(layer, layer_weights(random_weights(CONFIGS[family]()), layer))
    generator = torch.Generator().manual_seed(5)
    config = decoder.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LayerRun(
        decoder=decoder,
        tree=tree,
        batch=batch,
        carried=torch.randn(2, config.num_key_value_heads, NUM_CARRIED, head_dim, generator=generator),
        hidden_states=torch.randn(num_rows, config.hidden_size, generator=generator),
        position_ids=torch.from_numpy(tree.position_ids[NUM_CARRIED:].astype(np.int64)),
    )


class Untouchable(nn.Module):
    """Stands for what must not be computed."""

    def forward(self, *arguments: object, **settings: object) -> torch.Tensor:
        raise AssertionError("computed, although only keys and values are wanted")


def refuse_tiles(max_rows: int, window: int | None) -> tuple[Tile, ...]:
    raise AssertionError("attends, although only keys and values are wanted")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_keys_only_pass_leaves_the_keys_of_a_full_run(family, layer):
    run = make_layer_run(family, layer)
    full = run.call()
    run.decoder.run_layer(layer, run.hidden_states, run.position_ids, full)
    module = run.decoder.layers[layer]
    untouchable = {owner: Untouchable() for owner in ("mlp", "self_attn.o_proj", "self_attn.q_proj")}
    for name in untouchable:
        owner, _, leaf = name.rpartition(".")
        if hasattr(module.get_submodule(owner), leaf):
            setattr(module.get_submodule(owner), leaf, untouchable[name])
    keys = run.call(mode="keys", tiles_of=refuse_tiles)
    key_values = run.decoder.run_layer_keys(layer, run.hidden_states, run.position_ids, keys)
    assert key_values is keys.key_values
    torch.testing.assert_close(key_values, full.key_values, rtol=0, atol=0)
    torch.testing.assert_close(key_values[:, :, :NUM_CARRIED], run.carried, rtol=0, atol=0)
    assert module.mlp is untouchable["mlp"]
    assert module.self_attn.o_proj is untouchable["self_attn.o_proj"]


@torch.inference_mode()
def test_modules_are_put_back_when_a_keys_only_pass_fails():
    run = make_layer_run("llama-gqa", 0)
    before = dict(run.decoder.layers[0].named_modules())
    with pytest.raises(RuntimeError):
        run.decoder.run_layer_keys(0, run.hidden_states[:, :-1], run.position_ids, run.call(mode="keys"))
    assert dict(run.decoder.layers[0].named_modules()) == before


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_scored_rows_alone_are_those_rows_of_a_full_run(family, layer):
    run = make_layer_run(family, layer)
    full = run.call()
    expected = run.decoder.run_layer(layer, run.hidden_states, run.position_ids, full)
    rows = torch.from_numpy(run.batch.scored_rows)
    scored = run.call(
        mode="scored",
        carried=None,
        key_values=full.key_values,
        tiles_of=lambda cut, window: build_scored_tiles(run.tree, run.batch, EIGHT_ROWS, window),
    )
    output = run.decoder.run_layer(layer, run.hidden_states[rows], run.position_ids[rows], scored)
    # Fewer rows change the order in which GEMMs sum.
    torch.testing.assert_close(output, expected[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama-gqa", [None, None, None]),
        ("qwen2", [None, None, None]),
        ("mistral", [16, 16, 16]),
        ("gemma2", [16, None, 16]),
        ("gemma3", [16, None, 16]),
    ],
)
@torch.inference_mode()
def test_each_layer_asks_for_tiles_of_its_window(family, windows):
    for layer, window in enumerate(windows):
        run, asked = make_layer_run(family, layer), []
        tiles_of = run.call().tiles_of
        call = run.call(
            tiles_of=lambda cut, given, tiles=tiles_of, log=asked: log.append(given) or tiles(cut, given)
        )
        run.decoder.run_layer(layer, run.hidden_states, run.position_ids, call)
        assert asked == [window]
        if getattr(run.decoder.config, "layer_types", None):
            assert call.window == window


@pytest.mark.parametrize("family", [*FAMILIES, "linear"])
def test_rope_tables_hold_what_the_family_computes_for_any_position(family):
    linear = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
    config = hf.LlamaConfig(**SHAPE, rope_parameters=linear) if family == "linear" else CONFIGS[family]()
    decoder = build_decoder(config, torch.float32)
    decoder.prepare_rope(30, CPU, torch.float32)
    # As on a tree: positions repeat, and start again where a branch leaves.
    position_ids = torch.tensor([0, 1, 2, 29, 30, 7, 8, 7, 8])
    hidden_states = torch.zeros(1, len(position_ids), config.hidden_size)
    assert decoder.rope_tables
    for kind, tables in decoder.rope_tables.items():
        arguments = (hidden_states, position_ids[None], *([kind] if kind else []))
        for table, expected in zip(tables, decoder.base.rotary_emb(*arguments), strict=True):
            assert len(table) == 31
            torch.testing.assert_close(table[position_ids], expected[0], rtol=1e-6, atol=1e-6)


def test_gemma3_has_a_table_for_each_kind_of_layer():
    decoder = build_decoder(CONFIGS["gemma3"](), torch.float32)
    decoder.prepare_rope(30, CPU, torch.float32)
    assert set(decoder.rope_tables) == {"full_attention", "sliding_attention"}
    full, sliding = decoder.rope_tables["full_attention"], decoder.rope_tables["sliding_attention"]
    assert not torch.equal(full[0], sliding[0])


@pytest.mark.parametrize("family", ["llama-gqa", "gemma2", "gemma3"])
def test_embedding_and_final_norm_are_the_familys(family):
    config = CONFIGS[family]()
    model = hf.AutoModel.from_config(config, dtype=torch.float32)
    randomize_weights(model)
    decoder, token_ids = build_decoder(CONFIGS[family](), torch.float32), torch.tensor([7, 3, 300])
    table = model.embed_tokens.weight.detach()[[3, 7, 300]]
    embedded = decoder.embed(table, torch.tensor([1, 0, 2]))
    # What the first layer is given: transformers 5.0 scales some embeddings outside of embed_tokens.
    with torch.no_grad():
        given = model.eval()(token_ids[None], output_hidden_states=True).hidden_states[0][0]
    torch.testing.assert_close(embedded, given, rtol=0, atol=0)
    states = torch.randn(4, config.hidden_size, generator=torch.Generator().manual_seed(0))
    normalized = decoder.normalize({"weight": model.norm.weight.detach()}, states)
    torch.testing.assert_close(normalized, model.norm(states), rtol=0, atol=0)


def test_weights_are_on_no_device_until_assigned_and_never_copied():
    decoder = build_decoder(CONFIGS["llama-gqa"](), torch.float32)
    assert all(weight.is_meta for weight in decoder.base.parameters())
    weights = layer_weights(random_weights(CONFIGS["llama-gqa"]()), 1)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == decoder.layer_shapes(1)
    decoder.assign_layer(1, weights)
    for name, parameter in decoder.layers[1].named_parameters():
        assert parameter.data_ptr() == weights[name].data_ptr()
    assert all(weight.is_meta for weight in decoder.layers[0].parameters())
    decoder.drop_layer(1)
    assert all(weight.is_meta for weight in decoder.layers[1].parameters())


def test_a_weight_the_layer_does_not_have_is_named():
    decoder = build_decoder(CONFIGS["llama-gqa"](), torch.float32)
    with pytest.raises(KeyError, match=r"LlamaDecoderLayer has no parameter mlp\.extra"):
        decoder.assign_layer(0, {"mlp.extra": torch.zeros(1)})
