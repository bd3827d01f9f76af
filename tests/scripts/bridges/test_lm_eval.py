"""The harness' model "strata" beside its own `hf` model: the same answers to the same requests.

Skipped without lm-eval, which is no dependency of the tests: it brings dozens of packages.
"""

from __future__ import annotations

import copy

import pytest
import torch

from .harness_requests import PAIRS, answers_of, assert_same, assert_same_totals, requests, rolling_requests

evaluator = pytest.importorskip("lm_eval.evaluator")
tasks = pytest.importorskip("lm_eval.tasks")

pytestmark = [
    pytest.mark.usefixtures("fixed_rates"),
    # Of the harness and what it imports.
    pytest.mark.filterwarnings("ignore"),
]

TEXTS = ["The river carries sand.", "A stone falls as fast as a feather. " * 12, "x"]


def evaluate(model, task, shots):
    """The harness' results; of its own tasks, thousands of files, it is told to know nothing."""
    return evaluator.simple_evaluate(
        model,
        tasks=[copy.deepcopy(task)],
        num_fewshot=shots,
        bootstrap_iters=0,
        log_samples=True,
        task_manager=tasks.TaskManager(include_defaults=False),
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_length": 24}, {"add_bos_token": False}, {"add_bos_token": True}, {"prefix_token_id": 2}],
    ids=str,
)
@pytest.mark.parametrize("model", ["stories260k", "llama-gqa"])
def test_log_likelihoods(model, settings, strata_model, harness_model, checkpoint, request):
    folder = request.getfixturevalue(model) if model == "stories260k" else checkpoint(model)
    ours, theirs = strata_model(folder, **settings), harness_model(folder, **settings)
    assert ours.max_length == theirs.max_length
    asked = requests("loglikelihood", PAIRS)
    assert_same(ours.loglikelihood(asked), theirs.loglikelihood(asked))
    rolling = rolling_requests(TEXTS)
    assert_same_totals(ours.loglikelihood_rolling(rolling), theirs.loglikelihood_rolling(rolling))


def test_what_would_be_written_greedily(strata_model, harness_model, stories260k):
    """A trained model, whose most probable continuation is told to be that, of several tokens too."""
    theirs, ours = harness_model(stories260k), strata_model(stories260k)
    start = "Once upon a time, there was"
    tokens = theirs.tok_encode(start)
    written = theirs.model.generate(input_ids=torch.tensor([tokens]), max_new_tokens=4, do_sample=False)
    greedy = theirs.tok_decode(written[0].tolist())[len(start) :]
    asked = requests("loglikelihood", [(start, greedy), (start, " purple")])
    found = ours.loglikelihood(asked)
    assert [is_greedy for _, is_greedy in found] == [True, False]
    assert_same(found, theirs.loglikelihood(asked))


def test_a_shared_context_is_computed_once(strata_model, checkpoint):
    model = strata_model(checkpoint("llama-gqa"))
    context, options = PAIRS[0][0], (" the river", " the river bed", " a bee")
    model.loglikelihood(requests("loglikelihood", [(context, option) for option in options]))
    encoded = [model._encode_pair(context, option) for option in options]
    paths = {tuple(head + rest)[:end] for head, rest in encoded for end in range(1, len(head) + len(rest))}
    assert model.tokens_computed == len(paths)


@pytest.mark.parametrize("shots", [0, 2, 5])
def test_accuracies_of_a_task(shots, task, data_set_cache, strata_model, harness_model, checkpoint):
    folder = checkpoint("llama-gqa")
    ours, theirs = (evaluate(model, task, shots) for model in (strata_model(folder), harness_model(folder)))
    for metric in ("acc,none", "acc_norm,none"):
        assert ours["results"]["few"][metric] == theirs["results"]["few"][metric]
    for one, other in zip(ours["samples"]["few"], theirs["samples"]["few"], strict=True):
        assert one["arguments"] == other["arguments"]
        assert_same(answers_of(one), answers_of(other))


def test_perplexities_of_a_task(task, data_set_cache, strata_model, harness_model, checkpoint):
    """Whole texts, as the harness itself asks for them, whichever its version."""
    texts = {
        **task,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
    }
    names = ("word_perplexity", "bits_per_byte")
    texts["metric_list"] = [{"metric": name} for name in names]
    del texts["doc_to_choice"]
    folder = checkpoint("llama-gqa")
    ours, theirs = (evaluate(model, texts, 0) for model in (strata_model(folder), harness_model(folder)))
    for name in names:
        expected = theirs["results"]["few"][f"{name},none"]
        assert ours["results"]["few"][f"{name},none"] == pytest.approx(expected, rel=1e-4)
        assert expected > 1


def test_few_shot_examples_that_all_questions_share_are_computed_once(
    task, data_set_cache, strata_model, checkpoint
):
    model = strata_model(checkpoint("llama-gqa"))
    first = {**task, "fewshot_config": {"sampler": "first_n", "split": "validation"}}
    results = evaluate(model, first, 2)
    pairs = [pair for sample in results["samples"]["few"] for pair in sample["arguments"]]
    encoded = [model._encode_pair(*pair) for pair in pairs]
    paths = {tuple(head + rest)[:end] for head, rest in encoded for end in range(1, len(head) + len(rest))}
    assert model.tokens_computed == len(paths)
    assert model.tokens_computed < 0.4 * sum(len(head) + len(rest) - 1 for head, rest in encoded)


def test_an_adapter(strata_model, harness_model, checkpoint, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folder = checkpoint("llama-gqa")
    torch.manual_seed(3)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings).save_pretrained(tmp_path)
    asked = requests("loglikelihood", PAIRS)
    with_adapter = strata_model(folder, peft=str(tmp_path)).loglikelihood(asked)
    assert_same(with_adapter, harness_model(folder, peft=str(tmp_path)).loglikelihood(asked))
    without = strata_model(folder).loglikelihood(asked)
    assert max(abs(one[0] - other[0]) for one, other in zip(with_adapter, without, strict=True)) > 1


def test_a_gguf_file(strata_model, harness_model, tmp_path):
    pytest.importorskip("gguf")
    from ...tiny_gguf import write_tiny_gguf

    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    asked = requests("loglikelihood", PAIRS)
    theirs = harness_model(tmp_path, gguf_file=file.name).loglikelihood(asked)
    ours = strata_model(file)
    assert_same(ours.loglikelihood(asked), theirs)
    assert_same(strata_model(tmp_path, gguf_file=file.name).loglikelihood(asked), theirs)
    assert ours.tokenizer_name == str(file).replace("/", "__")
