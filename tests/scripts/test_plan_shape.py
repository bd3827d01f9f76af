"""`strata plan --shape`: a table without a checkpoint, figures against hand counts, errors naming flags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from strata.engine.config import PlanConfig
from strata.engine.machine.profile import load_profile
from strata.engine.model.decoder import build_decoder
from strata.engine.plan.costs import shape_costs
from strata.engine.plan.shapes import (
    LLAMA2_70B,
    SHAPES,
    TINY,
    JobSize,
    read_shape,
    shape_workload,
    to_llama_config,
)
from strata.engine.types import InputError
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.workloads.flops import useful_flops
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.cli import main
from strata.scripts.plan_shape import plan_shape

ASKED = ["plan", "--profile", "kaggle-2xt4", "--shape", "tinyllama-1.1b", "--questions", "4000"]


def config(**settings: object) -> PlanConfig:
    return PlanConfig.from_flags(**{"shape": "tinyllama-1.1b", "questions": Path("4000"), **settings})


@pytest.fixture(scope="module")
def seventy_billion():
    """Plans of Llama 2 70B on two T4 by (storage, compute)."""
    plans = plan_shape(config(shape="llama2-70b", tokens=1500), load_profile("kaggle-2xt4"))
    return {(found.storage, found.compute): found for found in plans}


def test_the_table_and_the_json_line_tell_the_same(capsys):
    assert main([*ASKED, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found["profile"] == "kaggle-2xt4"
    assert [(plan["storage"], plan["compute"]) for plan in found["plans"]] == [
        (storage, compute) for compute in ("float16", "int8") for storage in ("fp16", "int8", "nf4")
    ]
    for plan in found["plans"]:
        assert plan["questions_per_h"] == pytest.approx(4000 / plan["hours"])
        assert any(f"{plan['questions_per_h']:,.0f}" in line for line in lines[:-1])
        assert plan["rates_from"] == "profile kaggle-2xt4"


def test_the_two_t4_forecast_lies_between_the_hardwares_limit_and_nine_tenths_of_it(seventy_billion):
    # 137 GFLOP a token at 20 TFLOP/s on each card: about 700 questions of 1,500 tokens an hour.
    size = QuestionSize(prefix_tokens=1300, option_tokens=40, num_options=5)
    flops = useful_flops(LLAMA2_70B, size, scored_tokens=5)
    limit = 3600 * 40e12 / flops
    best = max(
        seventy_billion["fp16", "float16"].questions_per_h, seventy_billion["nf4", "float16"].questions_per_h
    )
    assert 0.88 * limit < best < limit
    assert seventy_billion["nf4", "int8"].questions_per_h > 1.3 * best


def test_a_plan_of_a_shape_fits_two_t4_and_hides_the_network_mount(seventy_billion):
    for found in seventy_billion.values():
        assert found.plan is not None
        assert found.plan.memory_bytes <= 0.8 * 15 * (1 << 30)
        assert found.plan.host_bytes <= 0.8 * 31e9
        assert found.plan.bottleneck == "compute"
    # 4,000 questions of hidden states are 98 GB: they need groups.
    assert seventy_billion["fp16", "float16"].plan.num_groups > 1


def test_fewer_stored_bytes_are_read_and_decoded(seventy_billion):
    plain, packed = (seventy_billion[storage, "float16"].plan for storage in ("fp16", "nf4"))
    read = {name: plan.bytes_read / plan.num_groups for name, plan in (("fp16", plain), ("nf4", packed))}
    # 0.516 bytes a weight for 2; both read the same embedding rows.
    assert read["nf4"] / read["fp16"] == pytest.approx(0.258, abs=0.01)
    assert (plain.decode_s, packed.decode_s > 0) == (0.0, True)


@pytest.mark.parametrize("name", ["tinyllama-1.1b", "llama2-70b"])
def test_flops_of_a_shape_are_the_useful_ones(name):
    shape = SHAPES[name]
    model = to_llama_config(shape)
    costs = shape_costs(model, build_decoder(model, torch.float16), "fp16", torch.float16, "dense")
    job = JobSize(num_questions=7, tokens=500, options=4, option_tokens=30)
    work = shape_workload(job, costs, shape.vocab_size)
    size = QuestionSize(prefix_tokens=380, option_tokens=30, num_options=4)
    useful = useful_flops(shape, size, scored_tokens=4)
    assert work.gemm_flops + work.attention_flops == pytest.approx(7 * useful, rel=1e-12)
    assert (work.num_tokens, work.num_scored, work.longest_branch_tokens) == (3500, 28, 410)


def test_bytes_of_a_shape_by_storage_and_computing():
    model = to_llama_config(TINY)
    decoder = build_decoder(model, torch.float16)
    matrices = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176
    norms = 2 * 64 * 2

    def costs(storage, linear):
        return shape_costs(model, decoder, storage, torch.float16, linear)

    assert costs("fp16", "dense").stored_bytes[0] == 2 * matrices + norms
    assert costs("int8", "dense").stored_bytes[0] == matrices + norms
    assert costs("nf4", "dense").stored_bytes[0] == int(matrices * (0.5 + 1 / 64 + 1 / 4096)) + norms
    assert costs("nf4", "dense").weight_bytes[0] == 2 * matrices + norms
    assert costs("nf4", "int8").weight_bytes[0] == matrices + norms
    for storage, linear, converted, steps in (
        ("fp16", "dense", 0, {}),
        ("nf4", "dense", 2 * matrices, {"nf4": matrices}),
        ("int8", "dense", 2 * matrices, {"int8": matrices}),
        ("int8", "int8", 0, {}),
        ("fp16", "int8", matrices, {"quantize": matrices}),
        ("nf4", "int8", matrices, {"nf4": matrices, "quantize": matrices}),
    ):
        found = costs(storage, linear)
        assert (found.converted_bytes[0], dict(found.decode_weights[0])) == (converted, steps)


def test_a_shape_costs_what_a_checkpoint_of_it_costs(tmp_path, capsys):
    folder = make_random_checkpoint(TINY, tmp_path / "tiny", dtype="bfloat16")
    assert read_shape(str(folder)).hidden_size == read_shape(str(folder / "config.json")).hidden_size == 64
    by_name = plan_shape(config(shape="tiny", tokens=250), load_profile("h100"))
    by_folder = plan_shape(config(shape=str(folder), tokens=250), load_profile("h100"))
    assert by_name == by_folder


def test_what_is_fixed_is_kept():
    fixed = config(micro_batch_tokens=1000, num_groups=3, resident_layers=2, storage="nf4", dtype="float16")
    (found,) = plan_shape(fixed, load_profile("kaggle-2xt4"))
    assert (found.plan.micro_batch_tokens, found.plan.num_groups) == (1000, 3)
    assert len(found.plan.resident_layers) == 2


def test_one_card_of_two_takes_twice_as_long():
    two = plan_shape(config(storage="fp16", dtype="float16"), load_profile("kaggle-2xt4"))[0]
    one = plan_shape(config(storage="fp16", dtype="float16", devices="cuda:0"), load_profile("kaggle-2xt4"))[
        0
    ]
    assert one.plan.compute_s == pytest.approx(2 * two.plan.compute_s, rel=0.01)


def test_a_row_that_does_not_fit_says_so_and_the_others_stand(capsys):
    tight = config(shape="llama2-70b", memory_gib=3.0)
    plans = plan_shape(tight, load_profile("kaggle-2xt4"))
    assert {bool(found.problem) for found in plans} == {True, False}
    arguments = ["plan", "--profile", "kaggle-2xt4", "--shape", "llama2-70b", "--questions", "4000"]
    assert main([*arguments, "--memory-gib", "3.0"]) == 0
    assert "does not fit" in capsys.readouterr().out
    assert main([*arguments, "--memory-gib", "0.5"]) == 2
    assert "--memory-gib: two layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--questions", "test.csv"], "--questions: 'test.csv'; with --shape expected their number"),
        (["--questions", "0"], "--questions: '0'"),
        (["--tokens", "200"], "--tokens: 200 are too few for 5 options of 40; expected more than 200"),
        (["--options", "0"], "--options, --option-tokens: 0, 40; expected 1 or more"),
        (["--shape", "llama9"], "--shape: 'llama9' is unknown; expected one of tiny, tinyllama-1.1b"),
        (
            ["--profile", "c64"],
            "--profile: 'c64' is unknown; expected one of card-24gb, cpu-avx2, cpu-zen4, h100, h200",
        ),
        (
            ["--dtype", "bfloat16"],
            "profile kaggle-2xt4: no rates for bfloat16; expected one of float16, int8",
        ),
        (["--devices", "cuda:2"], "--devices: 'cuda:2' is not there; profile kaggle-2xt4 has cuda:0, cuda:1"),
    ],
)
def test_input_that_makes_no_sense_is_named(arguments, message, capsys):
    assert main([*ASKED, *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"strata: {message}")


def test_a_plan_needs_a_checkpoint_or_a_shape(capsys):
    assert main(["plan", "--questions", "test.csv"]) == 2
    assert (
        "--model: missing; expected --model DIR and --questions FILE, or --shape" in capsys.readouterr().err
    )


def test_a_config_that_transformers_cannot_read_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no such thing"}')
    with pytest.raises(InputError, match=r"config\.json: transformers cannot read it"):
        read_shape(str(tmp_path))


def test_a_checkpoint_may_be_planned_for_another_machine(checkpoint, questions, capsys):
    arguments = ["--model", str(checkpoint("llama-gqa")), "--questions", str(questions)]
    assert main(["plan", *arguments, "--profile", "kaggle-2xt4"]) == 0
    told = capsys.readouterr().out
    assert "cuda:0, cuda:1; float16" in told
    assert "profile kaggle-2xt4" in told


def test_a_cache_that_holds_the_checkpoint_makes_later_sweeps_faster():
    profile = load_profile("kaggle-2xt4")
    asked = config(shape="llama2-70b", storage="nf4", dtype="float16", num_groups=16, questions=Path("50"))
    (cached,) = plan_shape(asked, profile)
    (cold,) = plan_shape(asked, replace(profile, cached_bytes_per_s=None))
    whole = 1 / 16 + 15 / 16 * profile.disk_bytes_per_s / profile.cached_bytes_per_s
    assert cached.plan.read_s == pytest.approx(whole * cold.plan.read_s, rel=0.05)
    (small,) = plan_shape(asked, replace(profile, cache_bytes=18_000_000_000))
    assert cached.plan.read_s < small.plan.read_s < cold.plan.read_s
