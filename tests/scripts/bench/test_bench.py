"""The parts of the benches: FLOP counts, random checkpoints, baselines, rates and records. Times nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
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
from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import INDEX_FILE
from strata.scripts.bench import record
from strata.scripts.bench.roofline import (
    GemmRate,
    GemmShapeRate,
    drop_page_cache,
    measure_disk_rate,
    measure_gemm_rate,
)
from strata.scripts.bench.shapes import gemm_flops_per_token, layer_gemm_shapes, num_parameters, useful_flops
from strata.scripts.bench.workloads.baselines import (
    SyntheticQuestion,
    hf_dynamic_cache,
    hf_naive,
    load_hf_model,
    synthetic_questions,
)
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_random_checkpoint(
        TINY, tmp_path_factory.mktemp("bench") / "tiny", dtype="float32", shard_bytes=100_000
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
        TINY, prefix_tokens=prefix, option_tokens=option, num_options=num_options, scored_tokens=len(scored)
    )


@pytest.mark.parametrize("scored", [0, 4, 25])
def test_useful_flops_refuse_scored_tokens_that_do_not_fit(scored):
    with pytest.raises(ValueError, match=f"scored_tokens {scored}: expected a multiple"):
        useful_flops(TINY, prefix_tokens=10, option_tokens=4, num_options=5, scored_tokens=scored)


def test_layer_gemms_sum_to_the_layer():
    llama = replace(TINY, num_heads=4, num_kv_heads=2, head_dim=24)
    gemms = {(k, n): 2 * k * n for _, k, n in layer_gemm_shapes(llama, 7)}
    counted = 2 * gemms[64, 48] + gemms[64, 96] + gemms[96, 64] + 2 * gemms[64, 176] + gemms[176, 64]
    assert counted == gemm_flops_per_token(llama)


def test_shape_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="num_heads 4 must be a multiple of num_kv_heads 3"):
        replace(TINY, num_kv_heads=3)


def test_checkpoint_loads_in_transformers_with_every_key_matched(checkpoint):
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    model, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.num_parameters() == num_parameters(TINY)
    assert model.dtype == torch.float32


def test_checkpoint_shards_and_index_agree(checkpoint):
    index = json.loads((checkpoint / INDEX_FILE).read_text())
    shards = {name: load_file(checkpoint / name) for name in set(index["weight_map"].values())}
    assert {key: name for name, tensors in shards.items() for key in tensors} == index["weight_map"]
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in shards.values()]
    assert sum(sizes) == index["metadata"]["total_size"] == 4 * num_parameters(TINY)
    assert max(sizes) <= 100_000


def test_weights_are_normal_and_differ_everywhere(checkpoint):
    weights = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    matrices = {name: value for name, value in weights.items() if value.ndim == 2}
    rows = torch.cat([value[:, :64].double() for value in matrices.values()])
    assert len(torch.unique(rows, dim=0)) == len(rows)
    values = torch.cat([value.flatten() for value in matrices.values()])
    assert values.mean().abs() < 1e-3
    assert values.std() == pytest.approx(0.02, rel=0.02)


def test_checkpoint_of_one_file_in_its_dtype_and_by_seed(tmp_path):
    paths = [make_random_checkpoint(TINY, tmp_path / f"{i}", seed=seed) for i, seed in enumerate((1, 1, 2))]
    first, again, other = (load_file(path / "model.safetensors") for path in paths)
    assert not (paths[0] / INDEX_FILE).exists()
    assert json.loads((paths[0] / "config.json").read_text())["dtype"] == "bfloat16"
    assert all(value.dtype == torch.bfloat16 for value in first.values())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_matrix_longer_than_the_pool_of_numbers_repeats_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr("strata.scripts.bench.workloads.random_checkpoint.POOL_LENGTH", 1009)
    path = make_random_checkpoint(TINY, tmp_path / "short_pool", dtype="float32")
    head = load_file(path / "model.safetensors")["lm_head.weight"]
    assert len(torch.unique(head, dim=0)) == len(head)


def test_whole_checkpoint_is_reused_and_any_other_refused(tmp_path):
    out = make_random_checkpoint(TINY, tmp_path / "tiny", shard_bytes=100_000)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert make_random_checkpoint(TINY, out, shard_bytes=100_000) == out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(InputError, match="another seed"):
        make_random_checkpoint(TINY, out, seed=1, shard_bytes=100_000)
    sorted(out.glob("*.safetensors"))[0].unlink()
    with pytest.raises(InputError, match=r"model-00001-of-\d+.safetensors is missing"):
        make_random_checkpoint(TINY, out, shard_bytes=100_000)


def test_checkpoint_never_touches_a_foreign_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds no random_checkpoint.json"):
        make_random_checkpoint(TINY, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_too_little_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 << 30))
    with pytest.raises(InputError, match=r"100.0 GiB free, but llama2-70b in bfloat16 needs 128.5 GiB"):
        make_random_checkpoint(LLAMA2_70B, tmp_path / "big")
    assert list(tmp_path.iterdir()) == []


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(InputError, match="dtype 'int3': expected one of float32"):
        make_random_checkpoint(TINY, tmp_path / "x", dtype="int3")


def test_synthetic_questions_share_no_first_token():
    questions = synthetic_questions(
        20, prefix_tokens=3, option_tokens=2, num_options=5, vocab_size=30, seed=3
    )
    assert len({int(question.prefix_ids[0]) for question in questions}) == 20
    assert all(len({int(ids[0]) for ids in question.option_ids}) == 5 for question in questions)
    every_id = np.concatenate([np.concatenate([q.prefix_ids, *q.option_ids]) for q in questions])
    assert every_id.shape == (20 * (3 + 5 * 2),)
    assert (every_id.min(), every_id.max()) == (3, 29)
    with pytest.raises(ValueError, match="vocab_size 22: expected at least 23"):
        synthetic_questions(20, prefix_tokens=3, vocab_size=22)


def test_baselines_agree_with_each_other_and_with_plain_logits(checkpoint):
    model = load_hf_model(checkpoint, dtype=torch.float32, device="cpu")
    questions = synthetic_questions(3, prefix_tokens=40, option_tokens=6, vocab_size=TINY.vocab_size)
    naive = hf_naive(model, questions, label_token_ids=(5, 9))
    cached = hf_dynamic_cache(model, questions, label_token_ids=(5, 9))
    assert naive.scores.shape == (3, 5)
    # Two float32 sums of the same terms in another order; scores are of order 0.1.
    np.testing.assert_allclose(naive.scores, cached.scores, atol=1e-5, rtol=0)
    ids = np.concatenate([questions[1].prefix_ids, questions[1].option_ids[2]])
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1]
    assert naive.scores[1, 2] == pytest.approx(float(logits[5] - logits[9]), abs=1e-5)
    assert naive.scores.std() > 1e-2
    assert len(naive.question_s) == len(cached.question_s) == 3
    assert naive.median_s == sorted(naive.question_s)[1]


def test_dynamic_cache_refuses_options_of_different_lengths(checkpoint):
    model = load_hf_model(checkpoint, dtype=torch.float32, device="cpu")
    question = SyntheticQuestion(np.arange(3, 9), (np.arange(3, 5), np.arange(3, 6)))
    with pytest.raises(ValueError, match=r"options of \[2, 3\] tokens"):
        hf_dynamic_cache(model, [question])


def test_gemm_rate_of_each_shape():
    rate = measure_gemm_rate(torch.float32, "cpu", [(8, 16, 4), (2, 4, 8)], seconds=0.0)
    assert (rate.dtype, rate.device) == ("float32", "cpu")
    assert [(shape.m, shape.k, shape.n, shape.num_repeats) for shape in rate.per_shape] == [
        (8, 16, 4, 3),
        (2, 4, 8, 3),
    ]
    assert all(shape.median_flop_per_s > 0 for shape in rate.per_shape)
    with pytest.raises(ValueError, match="shapes is empty"):
        measure_gemm_rate(torch.float32, "cpu", [])


def test_best_gemm_rate_is_the_largest_median():
    slow = GemmShapeRate(m=1, k=5, n=10, num_repeats=3, median_flop_per_s=100.0)
    fast = replace(slow, median_flop_per_s=400.0)
    rate = GemmRate(dtype="float32", device="cpu", per_shape=(slow, fast))
    assert rate.best_flop_per_s == 400.0


def test_disk_rate_reads_files_and_folders_and_leaves_them_whole(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.bin").write_bytes(b"x" * 5000)
    (tmp_path / "below" / "b.bin").write_bytes(b"y" * 3000)
    assert measure_disk_rate(tmp_path, 6000) > 0
    assert measure_disk_rate(tmp_path / "a.bin", 1 << 30) > 0
    drop_page_cache([tmp_path, tmp_path / "a.bin"])
    assert (tmp_path / "a.bin").read_bytes() == b"x" * 5000
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no bytes to read"):
        measure_disk_rate(tmp_path / "empty", 10)


def test_results_append_as_lines_of_json_and_end_stdout(tmp_path, capsys):
    results_dir = tmp_path / "results"
    for rate in (np.float32(0.5), 2):
        record.append_result("sweep", {"config": {"shape": "tiny"}, "resident_over_naive": rate}, results_dir)
    lines = (results_dir / "sweep.jsonl").read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    results = [json.loads(line) for line in lines]
    assert [result["resident_over_naive"] for result in results] == [0.5, 2]
    assert {"bench", "date", "commit", "machine", "versions", "config"} <= set(results[0])
    assert results[0]["date"].endswith("+00:00")
    assert results[0]["versions"]["torch"] == str(torch.__version__)
    assert results[0]["machine"]["num_cores"] >= 1


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"ratio": 1.0}, "no 'config'"),
        ({"config": {}, "date": "today"}, r"holds \['date'\]"),
        ({"config": {}, "ratio": float("nan")}, "not JSON compliant"),
    ],
)
def test_results_that_mean_nothing_are_refused(result, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        record.append_result("sweep", result, tmp_path)
    assert not (tmp_path / "sweep.jsonl").exists()


def test_environment_line_is_one_line_with_versions():
    line = record.environment_line()
    assert "\n" not in line
    assert all(word in line for word in ("cores", "GiB RAM", "torch 2.", "transformers 5.", "commit "))


def test_commit_is_unknown_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert record._commit() == "unknown"


def test_table_aligns_and_takes_text_literally(capsys):
    record.print_table([{"way": "[naive]", "tok/s": 1234.56, "ratio": 4.0, "n": 12000}])
    out = capsys.readouterr().out
    assert "| [naive] | 1,234.6 | 4.000 | 12,000 |" in out
    assert out.isascii()
