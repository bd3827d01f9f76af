"""`--task classify`, whole runs against transformers' (and PEFT's) own logits of every text alone."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from strata.engine.types import InputError

from ..label_classifiers import (
    LABELS,
    PAIRS,
    TEXTS,
    build_label_classifier,
    expected_logits,
    load_classifier,
    rename_head,
    train_by_chance,
)
from ..sample_questions import write_jsonl

FAMILIES = ("llama-gqa", "qwen2", "qwen3", "gemma2", "mistral")
# Both sides are float32 and differ in summation order only.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a Llama with a bias."""
    return build_label_classifier("llama-gqa", tmp_path_factory.mktemp("classifier"), bias=True)


@pytest.fixture
def classify(score, tmp_path):
    """`classify(model, rows, **settings)` -> ScoreRun."""

    def run(model, rows=TEXTS, **settings):
        questions = write_jsonl(tmp_path / "texts.jsonl", rows)
        return score(model=model, questions=questions, task="classify", **settings)

    return run


def assert_logits_equal(run, expected, tolerance=TOLERANCE):
    assert len(run.scores) == len(expected)
    for row, logits in zip(run.scores, expected, strict=True):
        assert row.question.options == LABELS
        np.testing.assert_allclose(row.scores, logits.numpy(), rtol=0, atol=tolerance)
        np.testing.assert_allclose(row.probabilities, logits.softmax(0).numpy(), rtol=0, atol=tolerance)
    assert min(float(np.ptp(row.scores)) for row in run.scores) > 100 * tolerance


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, bias, classify, tmp_path):
    model = build_label_classifier(family, tmp_path / "model", bias=bias)
    run = classify(model, num_groups=2)
    assert_logits_equal(run, expected_logits(load_classifier(model), model, TEXTS))
    assert run.record["plan"]["bytes_read"] == run.record["measured"]["bytes_read"]
    assert run.record["plan"]["head"] == "classify"


def test_pairs_are_tokenized_as_pairs(classify, tmp_path):
    classifier = build_label_classifier("llama-gqa", tmp_path / "model", bias=True)
    tokenizer = hf.AutoTokenizer.from_pretrained(classifier)
    tokenizer.backend_tokenizer.post_processor = pair_processor()
    tokenizer.save_pretrained(classifier)
    assert len(tokenizer("a", "b").input_ids) == 5
    run = classify(classifier, PAIRS)
    assert_logits_equal(run, expected_logits(load_classifier(classifier), classifier, PAIRS))
    # A prompt with its context is such a pair too.
    asked = [{"id": row["id"], "prompt": row["text_a"], "context": row["text_b"]} for row in PAIRS]
    again = classify(classifier, asked)
    for left, right in zip(run.scores, again.scores, strict=True):
        np.testing.assert_array_equal(left.scores, right.scores)


def pair_processor():
    from tokenizers import processors

    return processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )


@pytest.mark.parametrize("rows", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_long_texts_are_cut_as_the_tokenizer_cuts(rows, classifier, classify):
    run = classify(classifier, rows, max_tokens=7)
    cut = {"truncation": True, "max_length": 7}
    assert_logits_equal(run, expected_logits(load_classifier(classifier), classifier, rows, **cut))
    assert run.record["warnings"]["rows"]["text cut"]["count"] >= 2
    assert all(len(json.loads(line)["branches"][0]["ids"]) <= 7 for line in prompts_of(run))


def prompts_of(run):
    return (run.out / "prompts.jsonl").read_text().splitlines()


@pytest.mark.parametrize("pad_token_id", [None, 2])
def test_the_token_that_is_read(pad_token_id, classify, tmp_path):
    """With </s> as padding, as fine-tunes often have it, an appended </s> is not what is read."""
    model = build_label_classifier("qwen2", tmp_path / "model", bias=False, pad_token_id=pad_token_id)
    tokenizer = hf.AutoTokenizer.from_pretrained(model)
    tokenizer.backend_tokenizer.post_processor = ending_processor()
    tokenizer.save_pretrained(model)
    run = classify(model)
    assert_logits_equal(run, expected_logits(load_classifier(model), model, TEXTS))
    last = {json.loads(line)["branches"][0]["ids"][-1] == 2 for line in prompts_of(run)}
    assert last == {pad_token_id is None}


def ending_processor():
    from tokenizers import processors

    return processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_brings_its_classifier_with_its_bias(family, classify, tmp_path):
    model = build_label_classifier(family, tmp_path / "model", bias=True)
    adapter = train_by_chance(model, tmp_path / "adapter", seed=3)
    oracle = load_classifier(model, adapter)
    assert any(name.endswith("score.bias") for name in load_file(adapter / "adapter_model.safetensors"))
    assert_logits_equal(classify(model, adapter=(adapter,)), expected_logits(oracle, model, TEXTS))


def test_an_adapter_may_call_its_classifier_so(classifier, classify, tmp_path):
    adapter = train_by_chance(classifier, tmp_path / "adapter", seed=3)
    oracle = load_classifier(classifier, adapter)
    rename_head(adapter, "classifier")
    run = classify(classifier, adapter=(adapter,))
    assert_logits_equal(run, expected_logits(oracle, classifier, TEXTS))


def test_two_adapters_share_a_sweep_and_are_averaged_by_name(classifier, classify, tmp_path):
    adapters = tuple(
        train_by_chance(classifier, tmp_path / name, seed=seed) for seed, name in enumerate("ab")
    )
    # The second one's labels are called the other way round.
    turned = {"id2label": {str(index): name for index, name in enumerate(reversed(LABELS))}}
    (adapters[1] / "labels.json").write_text(json.dumps(turned))
    run = classify(classifier, adapter=adapters)
    first, second = (
        expected_logits(load_classifier(classifier, adapter), classifier, TEXTS) for adapter in adapters
    )
    for row, one, other in zip(run.scores, first, second, strict=True):
        mean = (one.softmax(0) + other.flip(0).softmax(0)) / 2
        np.testing.assert_allclose(row.probabilities, mean.numpy(), atol=TOLERANCE)


def test_a_mask_leaves_the_labels_that_a_row_may_get(classifier, classify):
    rows = [TEXTS[0] | {"options": ["moon", "river"]}, TEXTS[1] | {"options": ["7", "moon", "sea"]}]
    run = classify(classifier, rows)
    whole = expected_logits(load_classifier(classifier), classifier, rows)
    for row, asked, logits in zip(run.scores, rows, whole, strict=True):
        wanted = logits[[LABELS.index(name) for name in asked["options"]]]
        np.testing.assert_allclose(row.probabilities, wanted.softmax(0).numpy(), atol=TOLERANCE)
    table = pq.read_table(run.out / "scores.parquet").to_pydict()
    assert table["answer"] == [1, 1]
    assert table["probability_river"][1] is None
    assert table["probability_moon"] == pytest.approx(
        [run.scores[0].probabilities[0], *run.scores[1].probabilities[1:2]]
    )


def test_what_a_run_leaves(classifier, classify):
    run = classify(classifier)
    submission = list(csv.DictReader((run.out / "submission.csv").open()))
    for line, row in zip(submission, run.scores, strict=True):
        assert line == {"id": row.question.id, "prediction": " ".join(LABELS[best] for best in row.order[:3])}
    table = pq.read_table(run.out / "scores.parquet").to_pydict()
    for index, name in enumerate(LABELS):
        assert table[f"probability_{name}"] == [row.probabilities[index] for row in run.scores]
    hits = [row.order[0] == answer for row, answer in zip(run.scores, (1, 4, 3), strict=False)]
    metrics = run.record["metrics"]
    assert metrics["num_answered"] == 3
    assert metrics["accuracy"] == pytest.approx(np.mean(hits))
    assert set(metrics) >= {"map_at_3", "macro_f1"}
    page = (run.out / "report.html").read_text()
    assert f"<b>{LABELS[run.scores[0].order[0]]}</b>" in page
    assert "Macro F1" in page


def test_a_probability_column_each(classifier, classify):
    run = classify(classifier, submission="probabilities")
    with (run.out / "submission.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["id", *LABELS]
    for cells, row in zip(rows, run.scores, strict=True):
        assert [float(cell) for cell in cells[1:]] == row.probabilities.tolist()


def test_labels_by_a_file(classifier, classify, tmp_path):
    names = tmp_path / "labels.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    run = classify(classifier, [{"text": "sand", "label": "c"}], labels=names)
    assert run.scores[0].question.options == tuple("abcde")
    assert run.scores[0].question.answer == 2
    assert run.scores[0].question.id == "1"
    names.write_text("a\nb\n")
    with pytest.raises(InputError, match=r"labels\.txt: names 2 labels; the classifier has 5$"):
        classify(classifier, labels=names)


def test_resume_goes_on_with_the_same_labels_only(classifier, classify, tmp_path):
    whole = classify(classifier)
    out = tmp_path / "resumed"
    first = classify(classifier, out=out)
    lines = [json.dumps({"fingerprint": "of another job"})]
    (out / "partial.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="--resume"):
        classify(classifier, out=out, resume=True)
    assert [row.order for row in first.scores] == [row.order for row in whole.scores]


REFUSED = [
    ({"head": "letters"}, TEXTS, "--head letters: --task classify has a head of its own; expected auto"),
    ({"chat": True}, TEXTS, "--chat: head classify reads a text as it is; expected a run without it"),
    ({}, [{"id": "a", "text": "x", "label": "lake"}], "'lake' is no label; expected a name such as 'sea'"),
    ({}, [{"id": "a", "text": "x", "label": 5}], "5 is no label"),
    (
        {},
        [{"id": "a", "body": "x"}],
        "column 'text' is missing; expected text, or text_a and text_b, or prompt",
    ),
    ({}, [{"id": "a", "text": "x", "options": ["sea"]}], "expected two labels or more, each once"),
    ({}, [{"id": "a", "text": "x", "options": ["sea", "lake"]}], "'lake' is no label"),
    ({}, [TEXTS[0], TEXTS[0]], "duplicate id 'a'"),
]


@pytest.mark.parametrize(("settings", "rows", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(settings, rows, message, classifier, classify):
    with pytest.raises(InputError, match=message) as error:
        classify(classifier, rows, **settings)
    assert "\n" not in str(error.value)


def test_settings_without_effect_are_told(classifier, classify):
    told = classify(classifier, debias="rotate", max_tokens=10**6).record["warnings"]["messages"]
    assert [line.partition(" of ")[0] for line in told] == [
        "--debias rotate has no effect on head classify, which does not number the options",
        "--max-tokens 1000000 exceeds the model's window",
    ]


def test_models_without_such_a_classifier(checkpoint, classify, score, classifier):
    with pytest.raises(InputError, match=r"--head classify: .* hold no score\.weight$"):
        classify(checkpoint("llama-gqa"))
    with pytest.raises(InputError, match=r"has shape \[1, 32\]; expected \[2 or more, 32\]$"):
        classify(checkpoint("llama-gqa", "classifier"))
    with pytest.raises(InputError, match=r"has shape \[5, 32\]; .* or --task classify, which scores"):
        score(model=classifier)


def test_a_bias_counts_for_pointwise_heads(checkpoint, score, tmp_path):
    """One label with a bias: every option's logit is higher by it."""
    source = checkpoint("llama-gqa", "classifier")
    plain = score(model=source)
    tensors = load_file(source / "model.safetensors") | {"score.bias": torch.tensor([3.5])}
    folder = tmp_path / "biased"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")
    for one, other in zip(plain.scores, score(model=folder).scores, strict=True):
        np.testing.assert_allclose(other.scores, one.scores + 3.5, rtol=1e-6)
