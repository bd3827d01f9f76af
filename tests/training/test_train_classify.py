"""`strata train --task classify`: a few steps against plain PyTorch and PEFT, and what is left."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file

from strata.engine.types import InputError, RunWarnings
from strata.scripts.cli import main
from strata.scripts.train import read_data
from strata.training.config import TrainConfig
from strata.training.data.batch_order import BatchOrder
from strata.training.data.text_set import balance, read_text_set
from strata.training.label_names import label_names
from strata.training.loop.trainer import Trainer
from strata.training.open_reader import open_reader
from strata.training.readers.resident_reader import open_resident_reader

from ..sample_questions import write_jsonl

LABELS = ("hill", "moon", "sea")
WORDS = ("river", "stone", "sand", "wind", "field", "light", "water", "valley", "ocean", "iron", "tin")
MARKERS = dict(zip(LABELS, ("copper", "bee", "smith"), strict=True))
NUM_STEPS = 3


def write_texts(path: Path, count: int, seed: int = 0) -> Path:
    """Texts of random words, one of which tells the label; "sea" is the commonest."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = rng.choice([*LABELS, "sea", "sea"])
        words = [*rng.sample(WORDS, 5), MARKERS[label]]
        rng.shuffle(words)
        rows.append({"id": f"{seed}-{number}", "text": " ".join(words), "label": label})
    return write_jsonl(path, rows)


def config_of(model: Path, folder: Path, **changes) -> TrainConfig:
    questions = folder / "texts.jsonl"
    if not questions.exists():
        write_texts(questions, 12)
    plain = {"model": model, "out": folder / "out", "questions": questions, "task": "classify"}
    plain |= {"devices": "cpu", "dtype": "float32", "lora_r": 4, "lora_dropout": 0.0, "tensorboard": "no"}
    plain |= {"batch_questions": 4, "max_steps": NUM_STEPS, "schedule": "constant", "warmup_share": 0.0}
    plain |= {"learning_rate": 0.01, "head_lr_scale": 0.5, "max_grad_norm": 0.0, "save_every": 0}
    return TrainConfig(**(plain | changes))


def start_from(config: TrainConfig, folder: Path) -> Path:
    """An adapter whose every number is away from 0: Adam would make steps of what is but rounding."""
    reader = open_resident_reader(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for group in reader.parameter_groups():
            for _, parameter in sorted(group.parameters.items()):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    folder.mkdir()
    reader.save(folder)
    return folder


def train(config: TrainConfig) -> Path:
    data = read_data(config, RunWarnings())
    reader = open_reader(config)
    trainer = Trainer(config, reader, data)
    trainer.start()
    trainer.run()
    if config.streamed:
        reader.close()
    return config.out / "adapter"


def train_plainly(config: TrainConfig, start: Path, targets: np.ndarray, weights: np.ndarray) -> dict:
    """The same steps by PEFT and torch alone, a text at a time; targets [n, L]."""
    base_config = hf.AutoConfig.from_pretrained(config.model, num_labels=len(LABELS))
    if config.layers:
        base_config.num_hidden_layers = int(config.layers)
        base_config.layer_types = base_config.layer_types[: int(config.layers)]
    base = hf.AutoModelForSequenceClassification.from_pretrained(
        config.model, config=base_config, dtype=torch.float32, attn_implementation="eager"
    )
    if config.layers_norm == "no":
        base.model.norm = torch.nn.Identity()
    model = PeftModel.from_pretrained(base, start, is_trainable=True).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(config.model)
    texts = [json.loads(line)["text"] for line in config.questions.read_text().splitlines()]
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    head = [weight for name, weight in named if ".score." in name]
    body = [weight for name, weight in named if ".score." not in name]
    rate = config.learning_rate
    optimizer = torch.optim.AdamW(
        [{"params": body, "lr": rate}, {"params": head, "lr": rate * config.head_lr_scale}], weight_decay=0.0
    )
    order = BatchOrder(num_examples=len(texts), batch_size=config.batch_questions, seed=config.seed)
    for step in range(NUM_STEPS):
        _, indices = order.batch(step)
        logits = [model(**tokenizer(texts[index], return_tensors="pt")).logits[0] for index in indices]
        wanted = torch.from_numpy(targets[indices] * weights).float()
        loss = -(wanted * torch.stack(logits).log_softmax(1)).sum() / wanted.sum()
        if (wanted.count_nonzero(1) == 1).all():
            hard = torch.nn.CrossEntropyLoss(torch.from_numpy(weights).float())
            torch.testing.assert_close(loss, hard(torch.stack(logits), wanted.argmax(1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: weight.detach() for name, weight in named}


def one_hot(config: TrainConfig) -> np.ndarray:
    rows = [json.loads(line) for line in config.questions.read_text().splitlines()]
    return np.eye(len(LABELS))[[LABELS.index(row["label"]) for row in rows]]


def assert_same_weights(adapter: Path, expected: dict, start: Path) -> None:
    found, before = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, start))
    expected = {
        name.replace(".default", "").replace(".modules_to_save", ""): weight
        for name, weight in expected.items()
    }
    assert found.keys() == expected.keys() == before.keys()
    for name, weight in expected.items():
        moved = (weight - before[name]).norm()
        assert moved > 1e-3, name
        # Adam divides by the gradient's own size: numbers of nearly no gradient move by rounding.
        assert (found[name] - weight).norm() < 1e-2 * moved, name


CASES = {
    "plain": {},
    "balanced": {"class_weights": "balanced"},
    "layers": {"layers": 2.0},
    "layers without norm": {"layers": 2.0, "layers_norm": "no"},
    "streamed": {"streamed": True},
    "streamed layers": {"streamed": True, "layers": 2.0, "layers_norm": "no"},
}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_plain_training(case, checkpoint, tmp_path):
    model = checkpoint("qwen2")
    first = config_of(
        model, tmp_path, **{name: value for name, value in CASES[case].items() if name != "streamed"}
    )
    start = start_from(first, tmp_path / "start")
    config = config_of(model, tmp_path, adapter=start, **CASES[case])
    targets, weights = one_hot(config), np.ones(len(LABELS))
    if config.class_weights == "balanced":
        # scikit-learn's "balanced": n / (L n_label).
        weights = len(targets) / (len(LABELS) * targets.sum(axis=0))
        assert np.ptp(weights) > 0.3
    adapter = train(config)
    assert_same_weights(adapter, train_plainly(config, start, targets, weights), start)


def test_columns_of_labels_are_soft_labels(checkpoint, tmp_path):
    model = checkpoint("qwen2")
    first = config_of(model, tmp_path)
    targets = np.random.default_rng(0).dirichlet(np.ones(len(LABELS)), size=12)
    rows = [json.loads(line) for line in first.questions.read_text().splitlines()]
    names = tmp_path / "labels.txt"
    names.write_text("\n".join(LABELS))
    for row, shares in zip(rows, targets.tolist(), strict=True):
        del row["label"]
        row |= dict(zip(LABELS, shares, strict=True))
    write_jsonl(first.questions, rows)
    config = config_of(model, tmp_path, labels=names)
    start = start_from(config, tmp_path / "start")
    config = config_of(model, tmp_path, labels=names, adapter=start)
    assert_same_weights(train(config), train_plainly(config, start, targets, np.ones(len(LABELS))), start)


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param((), id="whole", marks=pytest.mark.slow),
        pytest.param(("--layers", "2", "--layers-norm", "no"), id="layers"),
    ],
)
def test_a_planted_signal_is_learnt_and_scored_by_name(extra, checkpoint, tmp_path, score):
    model, out = checkpoint("llama-gqa"), tmp_path / "run"
    texts, held_out = write_texts(tmp_path / "train.jsonl", 200), write_texts(tmp_path / "test.jsonl", 40, 1)
    asked = [
        "train",
        "--model",
        str(model),
        "--questions",
        str(texts),
        "--out",
        str(out),
        "--task",
        "classify",
    ]
    quick = ("--learning-rate", "0.01", "--head-lr-scale", "1", "--epochs", "4", "--lora-r", "8")
    quiet = ("--devices", "cpu", "--tensorboard", "no", "--save-every", "0", "--eval-every", "0")
    assert main([*asked, *quick, *quiet, "--valid", str(held_out), *extra]) == 0
    adapter = out / "adapter"
    assert json.loads((adapter / "labels.json").read_text())["id2label"] == dict(
        zip("012", LABELS, strict=True)
    )
    run = score(model=model, questions=held_out, adapter=(adapter,), task="classify")
    # Always saying "sea" would reach 0.6.
    assert run.record["metrics"]["accuracy"] > 0.8
    assert run.scores[0].question.options == LABELS
    seen = json.loads((out / "train.json").read_text())["metrics"]
    for name in ("accuracy", "map_at_3", "macro_f1"):
        assert run.record["metrics"][name] == pytest.approx(seen[name])
    assert run.record["plan"]["num_layers"] == (2 if extra else 3)


def test_a_model_trained_whole_keeps_its_labels(checkpoint, tmp_path, score):
    config = config_of(checkpoint("llama-tied"), tmp_path, full=True, layers=2.0)
    train(config)
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(config.out / "model")
    assert tuple(loaded.config.id2label.values()) == LABELS
    assert len(loaded.model.layers) == 2
    run = score(model=config.out / "model", questions=config.questions, task="classify")
    tokenizer = hf.AutoTokenizer.from_pretrained(config.out / "model")
    for row in run.scores:
        logits = loaded(**tokenizer(row.question.prompt, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(row.scores, logits.detach().numpy(), atol=1e-4)


def test_labels_are_found_sorted(tmp_path):
    config = config_of(tmp_path, tmp_path)
    assert label_names(config) == LABELS
    write_jsonl(config.questions, [{"text": "a", "label": number} for number in (10, 9, 0)])
    assert label_names(config) == ("0", "9", "10")
    write_jsonl(config.questions, [{"text": "a", "label": "x"}])
    with pytest.raises(InputError, match=r"1 label\(s\); expected two or more"):
        label_names(config)
    write_jsonl(config.questions, [{"text": "a"}])
    with pytest.raises(InputError, match="no column 'label' to take the labels from"):
        label_names(config)


def test_balanced_weights_by_hand(tmp_path):
    config = config_of(tmp_path, tmp_path)
    data = read_text_set(config, RunWarnings()).train
    counts = Counter(question.options[question.answer] for question in data.questions)
    weights = balance(data.questions, data.labels, LABELS)
    assert weights == pytest.approx({name: 12 / (3 * counts[name]) for name in LABELS})


REFUSED = [
    ({"task": "binary", "labels": Path("x")}, "--labels: --task binary has no labels"),
    (
        {"task": "binary", "class_weights": "balanced"},
        "--class-weights balanced: --task binary has no labels",
    ),
    ({"full": True, "layers_norm": "no"}, "--layers-norm no: .* does not go with --full"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        config_of(tmp_path, tmp_path, **changes).check()
