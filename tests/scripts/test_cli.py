"""The command line as a user meets it: help, exit statuses, one line an error, and what is left on disk."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from strata.scripts.cli import main

pytestmark = pytest.mark.usefixtures("fixed_rates")

COMMANDS = {
    "score": "strata score --model DIR",
    "plan": "strata plan --model DIR",
    "demo": "strata demo",
    "bench": "strata bench sweep",
    "bench sweep": "strata bench sweep",
    "bench checkpoint": "strata bench checkpoint",
    "bench large": "strata bench large --shape llama2-70b",
    "bench calibrate": "strata bench calibrate",
    "bench plan-error": "strata bench plan-error",
    "bench retrieval": "strata bench retrieval",
    "pack": "strata pack --model DIR",
    "train": "strata train --model DIR",
    "bench train": "strata bench train",
    "bench train-encoder": "strata bench train-encoder",
    "index": "strata index --corpus",
    "search": "strata search --index",
    "doctor": "strata doctor",
    "kaggle": "strata kaggle pipeline.yaml",
    "bench start": "strata bench start",
}
HEAVY = (
    "torch",
    "transformers",
    "pyarrow",
    "pandas",
    "scipy",
    "sklearn",
    "sentence_transformers",
    "tantivy",
    "ray",
)
ASK_FOR_HELP = """
import contextlib, io, json, sys
from strata.scripts.cli import main

told = {}
for command in sys.argv[2:]:
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        status = main([*command.split(), "--help"])
    heavy = [name for name in sys.argv[1].split() if name in sys.modules]
    told[command] = {"status": status, "text": stdout.getvalue(), "heavy": heavy}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def help_told() -> dict[str, dict]:
    """Exit status, text and heavy modules of `--help`, of all commands in one fresh process."""
    command = [sys.executable, "-c", ASK_FOR_HELP, " ".join(HEAVY), "", *COMMANDS]
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_loads_nothing_heavy(command, help_told):
    told = help_told[command]
    assert told["status"] == 0
    assert told["heavy"] == []
    assert f"Example: {COMMANDS[command]}" in told["text"]


def test_version_is_the_installed_one(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"strata-score {importlib.metadata.version('strata-score')}\n"


def test_help_without_a_command_lists_them_all(help_told):
    assert help_told[""]["status"] == 0
    for command in COMMANDS:
        assert command.split()[0] in help_told[""]["text"]


CONTRACT = (
    "--model --questions --out --adapter --head --debias --context-column --max-tokens --template --devices "
    "--dtype --memory-gib --host-memory-gib --strict --save-prompts --deadline --resume --limit"
)


@pytest.mark.parametrize("command", ["score", "plan"])
def test_help_names_every_flag_of_the_contract(command, help_told):
    assert [flag for flag in CONTRACT.split() if flag not in help_told[command]["text"]] == []


def test_a_run_prints_a_summary_and_leaves_its_files(given, out, capsys):
    assert main(given) == 0
    captured = capsys.readouterr()
    assert captured.err == "" or captured.err.startswith("warning: ")
    assert "MAP@3 " in captured.out
    assert "uniform guess" in captured.out
    told = " ".join(captured.out.split())
    assert "contexts of 3 question(s) are from column context (--context-column none: without)" in told
    assert "tide: " in captured.out
    assert str(out) in captured.out.replace("\n", "")
    record = json.loads((out / "run.json").read_text())
    assert f"MAP@3 {record['metrics']['map_at_3']:.3f}" in captured.out
    names = {"submission.csv", "scores.parquet", "run.json", "report.html", "timeline.json"}
    assert {path.name for path in out.iterdir()} == names
    submission = (out / "submission.csv").read_text(encoding="utf-8").splitlines()
    assert submission[0] == "id,prediction"
    assert [line.split(",")[0] for line in submission[1:]] == ["tide", "07", "\u00e9t\u00e9", "bee"]
    assert pq.ParquetFile(out / "scores.parquet").metadata.num_rows == 4
    assert (record["status"], record["error"]) == ("done", None)


def test_what_int8_did_to_a_sample_is_said(given, out, capsys):
    assert main([*given, "--dtype", "int8"]) == 0
    captured = capsys.readouterr()
    assert "computing in int8 (measured: " in captured.err
    (told,) = [line for line in captured.out.splitlines() if line.startswith("int8 beside ")]
    check = json.loads((out / "run.json").read_text())["measured"]["int8_check"]
    assert f"the same best option on {check['top1_agreement']:.0%}" in told


def test_without_answers_there_is_no_map(given, tmp_path, capsys):
    questions = tmp_path / "unanswered.csv"
    questions.write_text("id,prompt,A,B\n1,Is it?,yes,no\n")
    assert main([*given, "--questions", str(questions)]) == 0
    assert "MAP@3" not in capsys.readouterr().out


def test_prompts_are_left_on_request(given, out, capsys):
    assert main([*given, "--save-prompts", "--limit", "2"]) == 0
    assert len((out / "prompts.jsonl").read_text().splitlines()) == 2


def test_a_repeated_flag_gives_several_adapters(given, tmp_path, capsys):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    more = ["--adapter", str(tmp_path / "first"), "--adapter", str(tmp_path / "second")]
    assert main([*given, *more]) == 2
    assert "first" in capsys.readouterr().err


USAGE = {
    "no command": ([], "score"),
    "an unknown command": (["rate"], "rate"),
    "an unknown bench": (["bench", "nothing"], "nothing"),
    "no model": (["score", "--questions", "q.csv", "--out", "out"], "--model"),
    "an unknown flag": (["score", "--model", "m", "--questions", "q", "--out", "o", "--fast"], "--fast"),
    "an unknown head": (["score", "--model", "m", "--questions", "q", "--out", "o", "--head", "x"], "--head"),
    "not a number": (["score", "--model", "m", "--questions", "q", "--out", "o", "--limit", "x"], "--limit"),
    "no memory": (
        ["score", "--model", "m", "--questions", "q", "--out", "o", "--memory-gib", "0"],
        "--memory-gib",
    ),
    "negative memory": (
        ["plan", "--model", "m", "--questions", "q", "--host-memory-gib", "-1"],
        "--host-memory-gib",
    ),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_status_2_and_names_the_culprit(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, culprit = USAGE[case]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert culprit in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


SETTINGS = {
    "no questions": ["--limit", "0"],
    "fewer than none": ["--limit", "-3"],
    "no tokens": ["--max-tokens", "0"],
    "no micro-batch": ["--micro-batch-tokens", "0"],
    "no groups": ["--num-groups", "0"],
    "fewer layers than none": ["--resident-layers", "-1"],
    "a mixture of devices": ["--devices", "cpu,cuda:0"],
    "a device without a number": ["--devices", "cuda"],
    "little memory": ["--memory-gib", "0.000001"],
    "little host memory": ["--host-memory-gib", "0.000001"],
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be_used_are_refused_in_one_line(case, given, out, capsys):
    flag = SETTINGS[case][0]
    assert main([*given, *SETTINGS[case]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("strata: ")
    assert flag in line or (flag == "--host-memory-gib" and "--memory-gib" in line)
    assert not out.exists()


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_plan_leaves_nothing_on_disk(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    arguments = [text for text in given[1:] if text not in ("--out", str(tmp_path / "out"))]
    assert main(["plan", *arguments, "--memory-gib", "1"]) == 0
    assert files_below(tmp_path) == before
    assert not (tmp_path / "runs").exists()
    told = capsys.readouterr().out
    for word in (
        "groups",
        "micro-batch",
        "resident layers",
        "bytes read",
        "FLOPs",
        "predicted",
        "bottleneck",
    ):
        assert word in told


def test_a_plan_refuses_what_a_run_refuses(given, capsys):
    assert main(["plan", *given[1:], "--memory-gib", "0.000001"]) == 2
    assert "--memory-gib" in capsys.readouterr().err


def test_a_plan_tells_what_the_run_then_does(given, out, capsys):
    more = ["--num-groups", "2", "--resident-layers", "1", "--micro-batch-tokens", "64"]
    assert main(["plan", *given[1:], *more]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert main([*given, *more]) == 0
    record = json.loads((out / "run.json").read_text())
    assert f"{record['measured']['bytes_read']:,}" in told
    assert f"{record['measured']['tokens_computed']:,}" in told


def test_a_run_in_a_child_process(given, out):
    command = [sys.executable, "-m", "strata.scripts.cli", *given, "--limit", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "MAP@3" in done.stdout
    assert (out / "submission.csv").read_text().count("\n") == 2


@pytest.mark.parametrize(("flags", "parts"), [([], ()), (["--parts", "core"], ("core",))])
def test_parts_of_the_sweep_bench_are_those_asked_for(flags, parts, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "strata.scripts.bench.sweep.sweep.run_sweep_bench", lambda config: asked.append(config) or 0
    )
    assert main(["bench", "sweep", *flags]) == 0
    assert asked[0].parts == parts


def test_ids_come_from_the_named_column(given, out, tmp_path, capsys):
    questions = tmp_path / "keyed.csv"
    questions.write_text("key,prompt,A,B\nk7,Why?,so,no\nk8,How?,so,no\n")
    named = [*given, "--questions", str(questions)]
    for flags, ids in ((["--id-column", "key"], ["k7", "k8"]), (["--overwrite"], ["1", "2"])):
        assert main([*named, *flags]) == 0
        rows = (out / "submission.csv").read_text().splitlines()[1:]
        assert [row.split(",")[0] for row in rows] == ids
        assert ("row numbers for ids" in capsys.readouterr().err) == (ids == ["1", "2"])


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--haed", "letters"], "--head "),
        (["--devics", "cpu"], "--devices "),
        (["--modle", "m"], "--modle"),
    ],
)
def test_a_mistyped_flag_is_named_with_what_may_be_meant(flags, hint, given, capsys):
    assert main([*given, *flags]) == 2
    told = capsys.readouterr().err
    assert flags[0] in told
    assert hint in told


def test_what_int8_does_is_on_the_screen(given, out, capsys):
    assert main([*given, "--dtype", "int8", "--int8-check-questions", "3"]) == 0
    check = json.loads((out / "run.json").read_text())["measured"]["int8_check"]
    told = " ".join(capsys.readouterr().out.split())
    assert f"int8 beside {check['dense_dtype']} on 3 question(s): the same best option on " in told
