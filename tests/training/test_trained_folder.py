"""What lies beside a trained adapter: settings that scoring takes up, and a README with what is known."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml

from strata.scripts.cli import main

from .tiny_reader import planted_questions, write_rows

pytestmark = pytest.mark.usefixtures("fixed_rates")
TEMPLATE = "{{ context }}Q: {{ prompt }}\n{% for o in options %}{{ loop.index }}) {{ o }}\n{% endfor %}A:"


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    """Folder of a run with task letters, a template of its own and --max-tokens; its model and questions."""
    folder = tmp_path_factory.mktemp("trained")
    questions = write_rows(folder / "train.jsonl", planted_questions(24))
    (folder / "mine.jinja").write_text(TEMPLATE)
    model, out = checkpoint("llama-gqa"), folder / "run"
    flags = {
        "--model": model,
        "--questions": questions,
        "--out": out,
        "--devices": "cpu",
        "--dtype": "float32",
    }
    flags |= {"--task": "letters", "--template": folder / "mine.jinja", "--max-tokens": 90, "--lora-r": 2}
    flags |= {"--valid-share": 0.25, "--tensorboard": "no", "--batch-questions": 6, "--learning-rate": 0.01}
    assert main(["train", *(str(text) for pair in flags.items() for text in pair)]) == 0
    (folder / "mine.jinja").unlink()
    return out, model, questions


def score(trained, out, *flags):
    run, model, questions = trained
    arguments = ["--model", str(model), "--questions", str(questions), "--out", str(out)]
    arguments += ["--adapter", str(run / "adapter"), "--devices", "cpu", "--dtype", "float32", *flags]
    assert main(["score", *arguments]) == 0
    return json.loads((out / "run.json").read_text())


def probabilities(out):
    import pyarrow.parquet as pq

    rows = pq.read_table(out / "scores.parquet").to_pydict()["scores"]
    return np.concatenate([np.asarray(row, float) for row in rows])


def test_scoring_asks_as_the_adapter_was_trained(trained, tmp_path, capsys):
    record = score(trained, tmp_path / "as-trained")
    told = " ".join(capsys.readouterr().out.split())
    adapter = trained[0] / "adapter"
    taken = {"head": "letters", "template": str(adapter / "template.jinja"), "max_tokens": 90}
    assert record["plan"]["adapter_settings"] == {str(adapter): taken}
    assert record["plan"]["head"] == "letters"
    assert f"as {adapter} was trained: --head letters, --template" in told
    given = ["--adapter-settings", "ignore", "--head", "letters", "--max-tokens", "90"]
    template = tmp_path / "t.jinja"
    template.write_text(TEMPLATE)
    spelled = score(trained, tmp_path / "spelled", *given, "--template", str(template))
    assert "adapter_settings" not in spelled["plan"]
    np.testing.assert_array_equal(probabilities(tmp_path / "as-trained"), probabilities(tmp_path / "spelled"))


def test_a_plan_asks_as_the_adapter_was_trained(trained, capsys):
    run, model, questions = trained
    arguments = ["--model", str(model), "--questions", str(questions), "--adapter", str(run / "adapter")]
    assert main(["plan", *arguments, "--devices", "cpu", "--dtype", "float32"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "head letters" in told
    assert f"as {run / 'adapter'} was trained: --head letters, --template" in told


def test_flags_win_over_the_adapters_folder(trained, tmp_path):
    record = score(trained, tmp_path / "out", "--head", "yes-no", "--template", "yes-no")
    assert record["plan"]["head"] == "yes-no"
    assert record["plan"]["adapter_settings"] == {str(trained[0] / "adapter"): {"max_tokens": 90}}


@pytest.mark.parametrize("name", ["adapter", "best"])
def test_the_readme_says_what_is_known_of_the_run(trained, name):
    run, model, questions = trained
    card = (run / name / "README.md").read_text()
    assert "More Information Needed" not in card
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": str(model),
        "library_name": "peft",
        "tags": ["strata", "multiple-choice"],
    }
    facts = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", body, flags=re.M))
    assert facts["data"] == f"{questions.name}, 18 example(s)"
    assert facts["task"] == "letters"
    assert facts["steps"] == "3 of 3, 6 example(s) each"
    assert facts["max tokens"] == "90"
    record = json.loads((run / "train.json").read_text())
    first, last = (record["measured"]["evaluations"][place] for place in (0, -1))
    assert first["step"] == 0
    row = f"| MAP@3 | {first['map_at_3']:.3f} | {last['map_at_3']:.3f} |"
    assert row in body
