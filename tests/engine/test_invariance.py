"""The same scores however a run is cut, placed or ordered; tokens and bytes counted exactly as promised."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers as hf

from ..families import FAMILIES, LAYERS_PER_MODEL
from ..reference import count_trie_nodes, read_prompts
from ..sample_questions import QUESTIONS, write_jsonl

# Cutting the stream elsewhere changes the shapes of the GEMMs, hence the order in which they sum: rounding is
# all that may differ.
TOLERANCE = 1e-5
WHOLE = {
    "micro_batch_tokens": 100_000,
    "num_groups": 1,
    "resident_layers": LAYERS_PER_MODEL,
    "devices": "cpu",
}
LAYOUTS = {
    "tokens-7": {"micro_batch_tokens": 7},
    "tokens-64": {"micro_batch_tokens": 64},
    "resident-0": {"resident_layers": 0},
    "resident-1": {"resident_layers": 1},
    "resident-2": {"resident_layers": 2},
    "two-devices": {"devices": "cpu,cpu", "micro_batch_tokens": 64},
    "store-ram": {"hidden_store": "ram", "micro_batch_tokens": 64},
    "store-disk": {"hidden_store": "disk", "micro_batch_tokens": 64},
    "groups-2": {"num_groups": 2, "micro_batch_tokens": 64, "resident_layers": 1},
    "groups-3": {"num_groups": 3, "micro_batch_tokens": 64, "resident_layers": 0},
}
MIXTURES = {
    "cut-fine": {
        "micro_batch_tokens": 19,
        "devices": "cpu,cpu",
        "hidden_store": "disk",
        "num_groups": 2,
        "resident_layers": 0,
    },
    "cut-coarse": {"micro_batch_tokens": 200, "hidden_store": "ram", "num_groups": 3, "resident_layers": 1},
}


def scores_by_id(run) -> dict[str, np.ndarray]:
    return {row.question.id: row.scores for row in run.scores}


def assert_same_scores(left, right) -> None:
    expected = scores_by_id(right)
    for question_id, scores in scores_by_id(left).items():
        np.testing.assert_allclose(scores, expected[question_id], rtol=0, atol=TOLERANCE, err_msg=question_id)


def assert_counts_hold(run, settings: dict) -> None:
    plan, measured = run.record["plan"], run.record["measured"]
    assert measured["tokens_computed"] == measured["trie_nodes"] == count_trie_nodes(read_prompts(run.out))
    assert measured["bytes_read"] == plan["bytes_read"]
    for name in ("micro_batch_tokens", "num_groups", "hidden_store"):
        assert plan[name] == settings.get(name, plan[name])
    assert len(plan["resident_layers"]) == settings.get("resident_layers", len(plan["resident_layers"]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_change_of_layout(layout, checkpoint, score):
    model = checkpoint("gemma3")
    whole = score(model=model, head="letters", debias="rotate", **WHOLE)
    cut = score(model=model, head="letters", debias="rotate", **(WHOLE | LAYOUTS[layout]))
    assert_same_scores(cut, whole)
    assert_counts_hold(cut, LAYOUTS[layout])


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_mixed_layouts(family, mixture, checkpoint, score):
    model = checkpoint(family)
    whole = score(model=model, head="yes-no", **WHOLE)
    cut = score(model=model, head="yes-no", **MIXTURES[mixture])
    assert_same_scores(cut, whole)
    assert_counts_hold(cut, MIXTURES[mixture])


@pytest.mark.parametrize("family", FAMILIES)
def test_order_of_questions(family, checkpoint, score, tmp_path):
    backwards = write_jsonl(tmp_path / "backwards.jsonl", QUESTIONS[::-1])
    settings = {"model": checkpoint(family), "head": "yes-no"}
    forwards_run, backwards_run = score(**settings), score(questions=backwards, **settings)
    assert [row.question.id for row in backwards_run.scores] == [row["id"] for row in QUESTIONS[::-1]]
    assert_same_scores(backwards_run, forwards_run)


@pytest.mark.parametrize("kind", ["classifier", "contrast_classifier"])
def test_classifier_heads_in_a_mixed_layout(kind, checkpoint, score):
    model = checkpoint("llama-gqa", kind)
    assert_same_scores(score(model=model, **MIXTURES["cut-fine"]), score(model=model, **WHOLE))


def test_two_devices_share_one_read(checkpoint, score):
    settings = {
        "model": checkpoint("llama-gqa"),
        "head": "yes-no",
        "resident_layers": 1,
        "micro_batch_tokens": 64,
    }
    one, two = (score(devices=devices, **settings).record["measured"] for devices in ("cpu", "cpu,cpu"))
    assert one["bytes_read"] == two["bytes_read"]
    assert one["tokens_computed"] == two["tokens_computed"]


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_streamed_layers_are_read_once_a_sweep_and_resident_ones_once(devices, checkpoint, score):
    def bytes_read(resident_layers: int, num_groups: int) -> int:
        layout = {"micro_batch_tokens": 64, "resident_layers": resident_layers, "num_groups": num_groups}
        run = score(model=checkpoint("llama-gqa"), head="yes-no", devices=devices, **layout)
        return run.record["measured"]["bytes_read"]

    # Differences at one number of groups: the embedding rows that a group needs are read for each group.
    assert bytes_read(0, 1) == bytes_read(LAYERS_PER_MODEL, 1)
    all_layers = bytes_read(0, 2) - bytes_read(LAYERS_PER_MODEL, 2)
    one_layer = bytes_read(LAYERS_PER_MODEL - 1, 2) - bytes_read(LAYERS_PER_MODEL, 2)
    assert bytes_read(0, 3) - bytes_read(LAYERS_PER_MODEL, 3) == 2 * all_layers
    assert all_layers == LAYERS_PER_MODEL * one_layer > 0


def test_sharing_prefixes_computes_fewer_tokens(checkpoint, score):
    measured = score(model=checkpoint("llama-gqa"), head="letters", debias="rotate").record["measured"]
    assert measured["tokens_computed"] < measured["tokens_per_option_run"]


@pytest.fixture(scope="module")
def make_adapter(checkpoint, tmp_path_factory):
    """`make_adapter(seed, task="CAUSAL_LM", **LoraConfig fields)` -> a random LoRA of the llama-gqa model."""
    classes = {"CAUSAL_LM": hf.AutoModelForCausalLM, "SEQ_CLS": hf.AutoModelForSequenceClassification}

    def make(seed: int, task: str = "CAUSAL_LM", **fields):
        torch.manual_seed(seed)
        base = classes[task].from_pretrained(checkpoint("llama-gqa"), dtype=torch.float32, num_labels=1)
        modules = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
        fields = {"r": 4, "lora_alpha": 8, "init_lora_weights": False} | fields
        config = peft.LoraConfig(target_modules=modules, task_type=task, **fields)
        folder = tmp_path_factory.mktemp(f"adapter{seed}")
        peft.get_peft_model(base, config).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(
    "fields", [{}, {"use_rslora": True, "rank_pattern": {"v_proj": 2}}], ids=["plain", "rslora"]
)
def test_a_merged_adapter_scores_as_peft_does(fields, make_adapter, checkpoint, reference, score):
    model, adapter = checkpoint("llama-gqa"), make_adapter(1, **fields)
    run = score(model=model, adapter=(adapter,), head="yes-no")
    expected = reference(model, adapter).score(run.out, "yes_no")
    without = reference(model).score(run.out, "yes_no")
    for question_id, scores in scores_by_id(run).items():
        np.testing.assert_allclose(scores, expected[question_id], rtol=0, atol=1e-4)
        assert np.abs(scores - without[question_id]).max() > 0.01


def test_an_adapter_brings_its_own_binary_head(make_adapter, checkpoint, reference, score):
    model, adapter = checkpoint("llama-gqa"), make_adapter(3, task="SEQ_CLS")
    run = score(model=model, adapter=(adapter,))
    expected = reference(model, adapter).score(run.out, "binary")
    for question_id, scores in scores_by_id(run).items():
        np.testing.assert_allclose(scores, expected[question_id], rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", [{}, MIXTURES["cut-fine"]], ids=["plain", "cut-fine"])
def test_several_adapters_in_one_sweep_score_as_each_alone(layout, make_adapter, checkpoint, score):
    settings = {"model": checkpoint("llama-gqa"), "head": "yes-no"}
    adapters = (make_adapter(1), make_adapter(2, use_rslora=True))
    together = score(adapter=adapters, **settings, **layout)
    for adapter in adapters:
        alone = scores_by_id(score(adapter=(adapter,), **settings))
        for row in together.scores:
            # Merged weights round once more than the low-rank product beside them, hence not TOLERANCE.
            np.testing.assert_allclose(
                row.member_scores[adapter.name], alone[row.question.id], rtol=0, atol=1e-4
            )


def test_truncated_contexts_and_odd_rows_keep_the_counts(checkpoint, score, tmp_path):
    rows = [
        {"id": "long", "question": "Is it?", "options": ["yes", "yes"], "context": "river sand " * 80},
        {"id": "empty", "question": "Is it?", "options": ["", "so"], "context": ""},
    ]
    odd = write_jsonl(tmp_path / "odd.jsonl", rows)
    settings = {"model": checkpoint("mistral"), "questions": odd, "head": "loglik", "max_tokens": 96}
    run = score(micro_batch_tokens=19, **settings)
    assert_counts_hold(run, {})
    lines = read_prompts(run.out)
    assert max(len(branch["ids"]) for line in lines for branch in line["branches"]) <= 96
    assert np.isfinite(np.concatenate([row.scores for row in run.scores])).all()
    assert "long" in json.dumps(run.record["warnings"])
    assert_same_scores(score(**settings, **WHOLE), run)
