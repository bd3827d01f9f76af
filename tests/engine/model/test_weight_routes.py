"""What a route says of a weight, against what loading it does: steps, values, and where the bytes lie."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from strata.engine.adapters.lora import Adapter, LoraWeights, merge
from strata.engine.model.decoder import build_decoder
from strata.engine.model.layer_loader import LayerLoader
from strata.engine.model.weight_routes import LayerForm, LayerRoutes, WeightRoute, route_layer, route_layers
from strata.engine.pack.config import PackConfig
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.weights.checkpoint import Checkpoint, open_checkpoint
from strata.engine.weights.tensor_reader import TensorReader
from strata.kernels.int8_linear.quantize import quantize_weight

NAME = "mlp.up_proj.weight"
EXPERTS = "mlp.experts.gate_up_proj"
KINDS = ("as computed", "other dtype", "int8", "nf4")
STEPS = {
    # (stored, computed in int8, an adapter is merged) -> steps
    ("as computed", False, False): (),
    ("as computed", False, True): ("merge",),
    ("as computed", True, False): ("quantize",),
    ("as computed", True, True): ("merge", "quantize"),
    ("other dtype", False, False): ("decode",),
    ("other dtype", False, True): ("decode", "merge"),
    ("other dtype", True, False): ("quantize",),
    ("other dtype", True, True): ("decode", "merge", "quantize"),
    ("int8", False, False): ("decode",),
    ("int8", False, True): ("decode", "merge"),
    ("int8", True, False): (),
    ("int8", True, True): ("decode", "merge", "quantize"),
    ("nf4", False, False): ("decode",),
    ("nf4", False, True): ("decode", "merge"),
    ("nf4", True, False): ("decode", "quantize"),
    ("nf4", True, True): ("decode", "merge", "quantize"),
}


@pytest.fixture(scope="module")
def stored(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory):
    """`stored(kind)` -> the same tiny model, its matrices stored so."""
    folder = tmp_path_factory.mktemp("stored")
    for kind in ("int8", "nf4"):
        pack_checkpoint(PackConfig(model=checkpoint("llama-gqa"), format=kind, out=folder / kind))
    return lambda kind: open_checkpoint(folder / kind if kind in ("int8", "nf4") else checkpoint("llama-gqa"))


def dtype_for(kind: str) -> torch.dtype:
    return torch.bfloat16 if kind == "other dtype" else torch.float32


def make_lora(shape: tuple[int, ...]) -> LoraWeights:
    generator = torch.Generator().manual_seed(7)
    a = torch.randn(2, shape[1], generator=generator)
    b = torch.randn(shape[0], 2, generator=generator)
    return LoraWeights(a=a, b=b, scaling=0.5)


def route_one(checkpoint: Checkpoint, kind: str, *, to_int8: bool, merges: bool) -> WeightRoute:
    shape = checkpoint.layer_sources(1)[NAME].single.shape
    form = LayerForm(shapes={NAME: shape}, dtype=dtype_for(kind), int8=frozenset([NAME] if to_int8 else []))
    loras = {NAME.removesuffix(".weight"): make_lora(shape)} if merges else {}
    return route_layer(checkpoint, 1, form, loras).weights[NAME]


def decode_by_hand(checkpoint: Checkpoint, dtype: torch.dtype) -> torch.Tensor:
    """The dense weight by what its format does, without a route."""
    single, reader = checkpoint.layer_sources(1)[NAME].single, TensorReader()
    parts = {role: reader.read(part) for role, part in single.parts.items()}
    return single.decode(parts, torch.empty(single.shape, dtype=dtype))


@pytest.mark.parametrize(("kind", "to_int8", "merges"), STEPS)
def test_the_steps_of_a_weight(kind, to_int8, merges, stored):
    route = route_one(stored(kind), kind, to_int8=to_int8, merges=merges)
    assert route.steps == STEPS[kind, to_int8, merges]


@pytest.mark.parametrize(("kind", "to_int8", "merges"), STEPS)
def test_a_weight_lies_where_its_route_says_and_takes_that_many_bytes(kind, to_int8, merges, stored):
    checkpoint = stored(kind)
    route = route_one(checkpoint, kind, to_int8=to_int8, merges=merges)
    reader = TensorReader()
    loader = LayerLoader(checkpoint, [LayerRoutes(weights={NAME: route})], reader)
    buffer = torch.zeros(route.buffer_bytes, dtype=torch.uint8)
    out = torch.zeros(max(1, route.converted_bytes), dtype=torch.uint8)
    weights = loader.decode(0, loader.read(0, buffer), out[: route.converted_bytes])
    assert reader.num_bytes_read == route.stored_bytes
    home = buffer if route.is_view else out
    assert home.data_ptr() <= weights[NAME].data_ptr() < home.data_ptr() + len(home)
    if not route.is_view:
        last = weights[NAME + "_scale"] if to_int8 else weights[NAME]
        assert 0 <= out.data_ptr() + route.converted_bytes - last.data_ptr() - last.nbytes < 64
    # A route without scratch must do without: here there is none.
    assert (loader._scratch is not None) == route.needs_scratch == (route.scratch_bytes > 0)


@pytest.mark.parametrize(("kind", "to_int8", "merges"), STEPS)
def test_a_weight_is_what_its_steps_make_of_it(kind, to_int8, merges, stored):
    checkpoint = stored(kind)
    route = route_one(checkpoint, kind, to_int8=to_int8, merges=merges)
    weights = LayerLoader(checkpoint, [LayerRoutes(weights={NAME: route})], TensorReader()).load(0)
    stays_exact = to_int8 and not merges and kind == "other dtype"
    dense = decode_by_hand(checkpoint, torch.float32 if stays_exact else dtype_for(kind))
    if merges:
        dense = merge(dense, make_lora(dense.shape))
    if not to_int8:
        assert torch.equal(weights[NAME], dense)
        return
    if route.is_view:
        single, reader = checkpoint.layer_sources(1)[NAME].single, TensorReader()
        parts = {role: reader.read(part) for role, part in single.parts.items()}
        expected = single.codes_and_scale(parts)
    else:
        codes = torch.empty(dense.shape, dtype=torch.int8)
        expected = (codes, torch.empty(dense.shape[0]))
        quantize_weight(dense, out=expected)
    assert torch.equal(weights[NAME], expected[0])
    assert torch.equal(weights[NAME + "_scale"], expected[1])


@pytest.mark.parametrize(
    ("kind", "to_int8", "merges", "steps"),
    [
        ("as computed", False, True, ()),
        ("other dtype", False, False, ("plain",)),
        ("int8", True, False, ()),
        ("int8", True, True, ("int8", "quantize")),
        ("nf4", True, False, ("nf4", "quantize")),
    ],
)
def test_the_planner_counts_every_weight_once_a_step_of_decoding(kind, to_int8, merges, steps, stored):
    route = route_one(stored(kind), kind, to_int8=to_int8, merges=merges)
    assert route.decode_weights == dict.fromkeys(steps, route.num_elements)


def test_experts_are_decoded_and_combined(checkpoint):
    opened = open_checkpoint(checkpoint("mixtral"))
    routes = route_layers(opened, build_decoder(opened.config), torch.float32)
    experts = routes[1].weights[EXPERTS]
    assert experts.steps == ("decode", "combine")
    assert (experts.is_view, experts.scratch_bytes) == (False, 0)
    assert experts.converted_bytes == 4 * experts.num_elements
    assert experts.stored_bytes == 4 * experts.num_elements


def test_a_layer_takes_what_its_weights_take(stored):
    opened = stored("nf4")
    decoder = build_decoder(opened.config, torch.bfloat16)
    decoder.quantize_linears()
    for layer in route_layers(opened, decoder, torch.bfloat16):
        routes = list(layer.weights.values())
        assert layer.stored_bytes == sum(route.stored_bytes for route in routes)
        assert layer.buffer_bytes == sum(route.buffer_bytes for route in routes)
        assert layer.weight_bytes == sum(route.form_bytes for route in routes)
        assert layer.converted_bytes == sum(route.converted_bytes for route in routes)
        assert layer.scratch_bytes == max(route.scratch_bytes for route in routes) > 0
        assert set(layer.decode_weights) == {"nf4", "quantize", "plain"}


def test_one_adapter_is_merged_and_several_are_not(stored):
    opened = stored("as computed")
    decoder = build_decoder(opened.config)
    shape = decoder.layer_shapes(0)[NAME]
    layers = ({"mlp.up_proj": make_lora(shape)},) * opened.num_layers
    adapter = Adapter(name="a", path=Path("a"), layers=layers, score=None, num_bytes=0)
    for adapters, merged in (([], 0), ([adapter], 1), ([adapter, adapter], 0)):
        routes = route_layers(opened, decoder, torch.float32, adapters)
        found = [sum("merge" in route.steps for route in layer.weights.values()) for layer in routes]
        assert found == [merged] * opened.num_layers


def test_every_combination_is_told():
    assert set(STEPS) == set(itertools.product(KINDS, [False, True], [False, True]))
