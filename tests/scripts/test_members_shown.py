"""Several adapters in one run: what each reaches alone is on the screen and in the report."""

from __future__ import annotations

import html
import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from strata.engine.adapters.trained_settings import TrainedSettings, write_trained_settings
from strata.scripts.cli import main

pytestmark = pytest.mark.usefixtures("fixed_rates")


@pytest.fixture
def adapters(checkpoint, tmp_path):
    """Two adapters that answer differently."""
    folders = []
    for name, seed in (("first", 0), ("second", 1)):
        base = AutoModelForCausalLM.from_pretrained(checkpoint("llama-gqa"))
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    return folders


def test_each_member_is_shown_with_what_it_reaches_alone(given, out, adapters, capsys):
    """Independent check: runs with one adapter each."""
    alone = {}
    for adapter in adapters:
        assert main([*given, "--adapter", str(adapter), "--overwrite"]) == 0
        metrics = json.loads((out / "run.json").read_text())["metrics"]
        alone[adapter.name] = [f"{metrics['map_at_3']:.3f}", f"{metrics['accuracy']:.3f}"]
    capsys.readouterr()
    both = [flag for adapter in adapters for flag in ("--adapter", str(adapter))]
    assert main([*given, *both, "--overwrite"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["member", "head", "dtype", "questions", "MAP@3", "accuracy"] in rows
    page = (out / "report.html").read_text()
    cells = [html.unescape(cell) for cell in re.findall(r"<td>([^<]*)</td>", page)]
    for name, figures in alone.items():
        (row,) = [row for row in rows if row[:1] == [name]]
        assert row[-2:] == figures
        place = cells.index(name)
        assert cells[place + 4 : place + 6] == figures


def test_members_that_were_trained_to_be_asked_differently(given, out, adapters, capsys):
    """They share a sweep: what `strata plan` says of it is what `strata score` computes."""
    for adapter, head in zip(adapters, ("letters", "yes-no"), strict=True):
        write_trained_settings(adapter, TrainedSettings(head=head), None)
    model, questions = (given[given.index(flag) + 1] for flag in ("--model", "--questions"))
    both = [flag for adapter in adapters for flag in ("--adapter", str(adapter))]
    asked = ["--model", model, "--questions", questions, *both]
    assert main(["plan", *asked]) == 0
    planned = capsys.readouterr().out
    assert "head letters, yes-no" in planned
    assert main(["score", *asked, "--out", str(out), "--overwrite"]) == 0
    told, measured = capsys.readouterr().out, json.loads((out / "run.json").read_text())["measured"]
    (tokens,) = re.findall(r"([\d,]+) \(([\d.]+)x fewer than one path at a time\)", planned)
    assert tokens[0] == f"{measured['tokens_computed']:,}"
    assert f"one path at a time would compute {tokens[1]}x as many" in told
    assert measured["trie_nodes"] == measured["tokens_computed"]
