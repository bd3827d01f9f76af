"""`strata train` as a user meets it: help, files that are left, exit statuses, passages, real readers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from strata.scripts import train as command
from strata.scripts.cli import main
from strata.training.tasks import count_units
from strata.training.types import Example, ParameterGroup

from ..families import build_tokenizer
from ..training.tiny_reader import TinyReader, planted_questions, saved_weights, write_rows


@pytest.fixture
def given(tmp_path, monkeypatch) -> list[str]:
    """The arguments of a run that succeeds, with TinyReader as the model."""
    monkeypatch.setattr(command, "open_reader", TinyReader)
    questions = write_rows(tmp_path / "train.jsonl", planted_questions(40))
    flags = {"--model": tmp_path, "--questions": questions, "--out": tmp_path / "out", "--devices": "cpu"}
    flags |= {"--valid-share": 0.2, "--batch-questions": 8, "--tensorboard": "no"}
    return ["train", *(str(text) for pair in flags.items() for text in pair)]


def read_record(out: Path) -> dict:
    return json.loads((out / "train.json").read_text())


def test_a_run_prints_a_summary_and_leaves_its_files(given, out, capsys):
    assert main([*given, "--save-every", "3"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in ("step 4 of 4", "validation MAP@3", "uniform guess", "longest option", str(out)):
        assert words in told
    names = {"adapter", "best", "best-4", "checkpoint-3", "log.jsonl", "train.json", "report.html"}
    assert {path.name for path in out.iterdir()} == names
    record = read_record(out)
    assert (record["status"], record["error"]) == ("done", None)
    assert record["run_info"]["config"]["batch_questions"] == 8
    assert record["run_info"]["machine"]["num_cores"] >= 1
    assert record["plan"]["num_steps"] == 4
    assert record["plan"]["trained_parameters"] == 129
    assert record["plan"]["dtype"] == "float32"
    assert "training 129 parameters in float32, 4 step(s)" in told
    measured = record["measured"]
    assert measured["history"]["step"] == [1, 2, 3, 4]
    assert measured["evaluations"][-1] == {"step": 4} | record["metrics"]
    assert "peft" in measured["versions"]


def test_a_run_that_fails_says_so_and_keeps_its_history(given, out, monkeypatch, capsys):
    def accumulate(reader, batch, *, seed):
        accumulate.calls += 1
        return float("nan") if accumulate.calls == 3 else original(reader, batch, seed=seed)

    accumulate.calls = 0
    original = TinyReader.accumulate_gradients
    monkeypatch.setattr(TinyReader, "accumulate_gradients", accumulate)
    assert main(given) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("strata: step 3: the loss is nan")
    record = read_record(out)
    assert (record["status"], record["error"]["type"]) == ("failed", "FloatingPointError")
    assert record["measured"]["history"]["step"] == [1, 2]
    assert not (out / "adapter").exists()


def test_an_interrupted_run_resumes(given, out, monkeypatch, capsys):
    def stop(reader, batch, *, seed):
        raise KeyboardInterrupt

    assert main([*given, "--save-every", "2", "--max-steps", "6", "--out", str(out) + "-whole"]) == 0
    original = TinyReader.accumulate_gradients
    steps = [original, original, original, stop]
    monkeypatch.setattr(
        TinyReader, "accumulate_gradients", lambda *given, **named: steps.pop(0)(*given, **named)
    )
    assert main([*given, "--save-every", "2", "--max-steps", "6"]) == 130
    told = capsys.readouterr().err
    assert "strata: interrupted; " in told
    assert "checkpoint-3 is whole; the same command with --resume goes on from it" in told
    assert "Run interrupted." in (out / "report.html").read_text()
    assert read_record(out)["status"] == "interrupted"
    monkeypatch.setattr(TinyReader, "accumulate_gradients", original)
    assert main([*given, "--save-every", "2", "--max-steps", "6"]) == 2, "without --resume"
    assert main([*given, "--save-every", "2", "--max-steps", "6", "--resume"]) == 0
    assert read_record(out)["plan"]["first_step"] == 3
    assert read_record(out)["measured"]["history"]["step"] == [1, 2, 3, 4, 5, 6]
    whole = saved_weights(out.with_name("out-whole") / "adapter")
    assert all(torch.equal(weight, whole[name]) for name, weight in saved_weights(out / "adapter").items())


def test_help_shows_an_example_and_loads_nothing_heavy():
    code = "import sys; from strata.scripts.cli import main; main(['train', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, _, modules = done.stdout.rstrip().rpartition("\n")
    assert "Example: strata train --model DIR" in told
    words = " ".join(re.sub(r"[│╭╰─╮╯]", " ", told).split())
    assert "--no-shuffle-options --no-shuffle-options shows options in the order of the file" in words
    assert not {"torch", "transformers", "pyarrow", "peft", "accelerate"} & set(modules.split())


REFUSED = {
    "no questions": (["--questions", "nowhere.csv"], "nowhere.csv"),
    "no model": (["--model", "nowhere"], "--model"),
    "no adapter": (["--adapter", "nowhere"], "--adapter"),
    "a setting": (["--learning-rate", "0"], "--learning-rate"),
    "an unknown task": (["--task", "regress"], "--task"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(case, given, out, capsys):
    arguments, word = REFUSED[case]
    assert main([*given, *arguments]) == 2
    assert word in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("package", "flags"),
    [
        ("peft", []),
        ("peft", ["--plan"]),
        ("peft", ["--streamed"]),
        ("bitsandbytes", ["--base-storage", "nf4"]),
    ],
)
def test_an_absent_package_is_one_line_that_names_the_extra(package, flags, given, out, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, package, None)
    assert main([*given, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert package in line
    assert 'pip install "strata-score[train]"' in line
    assert not out.exists()


def test_all_weights_are_trained_without_peft(given, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main([*given, "--full"]) == 0


def test_a_file_where_the_folder_should_be(given, out, capsys):
    out.write_text("not a folder")
    assert main(given) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--lora-targets", "q_proj", "--limit", "9", "--lora-targets", "v_proj"],
        ["--lora_targets", "q_proj", "--lora-targets=v_proj"],
        ["--lora-targets", "q_proj", "v_proj"],
    ],
    ids=str,
)
def test_targets_of_a_repeated_flag_all_count(flags, given, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "run_train", lambda config: asked.append(config) or 0)
    assert main([*given, *flags]) == 0
    assert asked[0].lora_targets == ("q_proj", "v_proj")
    assert asked[0].limit == (9 if "--limit" in flags else None)


def test_a_list_of_targets_replaces_the_default(given, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "run_train", lambda config: asked.append(config) or 0)
    assert main([*given, "--lora-targets", "q_proj", "v_proj", "--no-shuffle-options"]) == 0
    assert main(given) == 0
    assert [config.lora_targets for config in asked] == [("q_proj", "v_proj"), ("all-linear",)]
    assert [config.shuffle_options for config in asked] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        ([], "resident_reader.open_resident_reader"),
        (["--streamed"], "streamed_reader.open_streamed_reader"),
        (["--task", "multiple-choice"], "encoder_reader.open_encoder_reader"),
    ],
)
def test_the_reader_is_chosen_by_task_and_flag(arguments, module, given, monkeypatch, capsys):
    monkeypatch.undo()
    name, function = module.split(".")
    opened = []

    def open_tiny(config):
        opened.append(config)
        return TinyReader(config)

    stand_in = types.ModuleType(name)
    setattr(stand_in, function, open_tiny)
    monkeypatch.setitem(sys.modules, f"strata.training.readers.{name}", stand_in)
    assert main([*given, *arguments]) == 0
    assert len(opened) == 1


class TinyLanguageReader(TinyReader):
    """A unigram language model."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.tokenizer = build_tokenizer()
        self.weight = torch.nn.Parameter(torch.zeros(len(self.tokenizer)))

    def log_probabilities(self, example: Example) -> torch.Tensor:
        ids = [target.token_id for target in example.prompt.branches[0].targets]
        return self.weight.log_softmax(0)[ids]

    def accumulate_gradients(self, batch, *, seed):
        summed = -torch.cat([self.log_probabilities(example) for example in batch]).sum()
        loss = summed / count_units("lm", batch)
        loss.backward()
        return loss.item()

    def score(self, examples):
        return [self.log_probabilities(one).mean().detach().double().numpy()[None] for one in examples]

    def loss(self, scores, examples):
        counts = [len(example.prompt.branches[0].targets) for example in examples]
        return -float(np.average([mean[0] for mean in scores], weights=counts))

    def parameter_groups(self):
        return [ParameterGroup(parameters={"weight": self.weight}, scale=1.0)]


@pytest.mark.parametrize("validation", ["share", "file"])
def test_passages_are_learned(validation, tmp_path, out, monkeypatch, capsys):
    monkeypatch.setattr(command, "open_reader", TinyLanguageReader)
    pages = [{"title": f"Page {number}", "text": "the tide turns " * (number + 2)} for number in range(12)]
    corpus = write_rows(tmp_path / "corpus.jsonl", pages)
    arguments = [
        "train",
        "--task",
        "lm",
        "--model",
        str(tmp_path),
        "--passages",
        str(corpus),
        "--out",
        str(out),
    ]
    arguments += ["--block-tokens", "16", "--learning-rate", "0.3", "--epochs", "4", "--tensorboard", "no"]
    if validation == "share":
        arguments += ["--valid-share", "0.25"]
    else:
        (tmp_path / "valid.txt").write_text("the tide turns and turns")
        arguments += ["--valid", str(tmp_path / "valid.txt")]
    assert main([*arguments, "--eval-every", "1"]) == 0
    record = read_record(out)
    losses = [evaluation["loss"] for evaluation in record["measured"]["evaluations"]]
    assert losses[-1] < losses[0] < np.log(384) + 0.1
    assert record["metrics"]["perplexity"] == pytest.approx(np.exp(losses[-1]))
    assert "map_at_3" not in record["metrics"]
    assert (
        record["measured"]["best_step"] == record["measured"]["evaluations"][int(np.argmin(losses))]["step"]
    )
    assert "perplexity" in capsys.readouterr().out


def test_a_corpus_without_text_is_refused(tmp_path, out, monkeypatch, capsys):
    monkeypatch.setattr(command, "open_reader", TinyLanguageReader)
    (tmp_path / "corpus.txt").write_text("")
    monkeypatch.setattr(command, "read_texts", lambda path: iter([""]))
    arguments = ["--model", str(tmp_path), "--passages", str(tmp_path / "corpus.txt"), "--out", str(out)]
    assert main(["train", "--task", "lm", *arguments]) == 2
    assert "--passages" in capsys.readouterr().err
    assert not out.exists()
