"""The LoRA bench on a tiny model: its keys, and that nothing is done twice."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.questions.metrics import evaluate
from strata.engine.questions.question_file import read_questions
from strata.engine.scorer import Scorer
from strata.engine.types import RunWarnings
from strata.scripts.bench.accuracy import lora
from strata.scripts.bench.accuracy.config import LoraBenchConfig

pytest.importorskip("tantivy")

ANIMALS = {"cats": "purr", "dogs": "bark", "fish": "swim", "birds": "sing"}


def write_questions(path: Path, *, answered: str) -> None:
    """Asks who does what, options in two orders; the right ones are those that `answered` leaves alone."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "A", "B", "C", "answer"])
        for number, (animal, deed) in enumerate(ANIMALS.items()):
            others = [other for other in ANIMALS if other != animal][:2]
            writer.writerow([number, f"{answered}: who does {deed}?", *others, animal, "C"])


@pytest.fixture
def config(checkpoint, fixed_rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoraBenchConfig:
    monkeypatch.setattr(lora, "RESULTS", tmp_path / "results")
    for name in (lora.TRAINING_SET, lora.TEST_SET):
        write_questions(tmp_path / f"{name}.csv", answered=name)
    passages = [{"_id": animal, "text": f"{animal} {deed}."} for animal, deed in ANIMALS.items()]
    text = "".join(json.dumps(passage) + "\n" for passage in passages)
    (tmp_path / lora.PASSAGES).write_text(text, encoding="utf-8")
    return LoraBenchConfig(
        data=tmp_path,
        model=checkpoint("llama-gqa"),
        folder=tmp_path / "runs",
        max_steps=2,
        batch_questions=2,
        dtype="float32",
    )


def test_keys_and_what_is_kept(config: LoraBenchConfig, tmp_path: Path, monkeypatch) -> None:
    assert lora.run_lora_bench(config) == 0
    (line,) = (tmp_path / "results" / "lora.jsonl").read_text(encoding="ascii").splitlines()
    found = json.loads(line)
    for key, run in {"lora_map3_before": "before", "lora_map3_kaggle200": "after"}.items():
        record = json.loads((config.folder / run / "run.json").read_text(encoding="utf-8"))
        assert found[key] == record["metrics"]["map_at_3"]
        assert record["measured"]["questions_with_context"] == len(ANIMALS)
    assert str(tmp_path) not in line
    members = [
        Member(model=config.folder / "model", head="loglik"),
        Member(model=config.folder / "model", adapter=config.folder / "choice" / "adapter"),
    ]
    asked = read_questions(config.folder / f"{lora.TEST_SET}.csv", warnings=RunWarnings())
    with Scorer.open(members, MachineSettings(dtype="float32", devices="cpu")) as scorer:
        metrics = evaluate(scorer.score(asked))
    assert found["lora_average_map3_kaggle200"] == pytest.approx(metrics["map_at_3"])
    for step in ("pack_checkpoint", "run_search", "run_train", "score_questions"):
        monkeypatch.setattr(lora, step, None)
    assert lora.run_lora_bench(config) == 0


def test_binary_of_the_first_layers_with_a_held_out_share(config: LoraBenchConfig, tmp_path: Path) -> None:
    """The adapter's folder says how many layers it is for; its held-out figure is the training's own."""
    asked = replace(config, task="binary", layers=2, valid_share=0.5, lora_targets=("v_proj", "down_proj"))
    assert lora.run_lora_bench(asked) == 0
    found = json.loads((tmp_path / "results" / "lora.jsonl").read_text(encoding="ascii"))
    trained = json.loads((config.folder / "binary" / "train.json").read_text(encoding="utf-8"))
    assert found["lora_map3_held_out"] == trained["metrics"]["map_at_3"]
    assert trained["plan"]["num_valid"] == len(ANIMALS) // 2
    after = json.loads((config.folder / "after" / "run.json").read_text(encoding="utf-8"))
    before = json.loads((config.folder / "before" / "run.json").read_text(encoding="utf-8"))
    assert after["plan"]["num_layers"] == 2
    assert before["plan"]["num_layers"] == 3
    names = load_file(config.folder / "binary" / "adapter" / "adapter_model.safetensors")
    adapted = {name.split(".")[-3] for name in names if ".lora_A." in name}
    assert adapted == {"v_proj", "down_proj"}
