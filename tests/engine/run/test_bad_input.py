"""What users get wrong: one clear line and exit 2 with nothing left behind, or, for an odd row, a warning."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf

from ...families import CONFIGS, build_letterless_tokenizer

pytestmark = pytest.mark.usefixtures("fixed_rates")

GOOD_ROWS = b"id,prompt,context,A,B,answer\n1,Is it?,So it is.,yes,no,A\n2,Was it?,It was.,no,yes,B\n"


def call(argv: list[str], capsys) -> tuple[int, str]:
    """Exit status and stderr of the command line, in this process."""
    from strata.scripts.cli import main

    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


@pytest.fixture
def call_in_a_child(forks) -> Callable[[list[str]], tuple[int, str]]:
    """Exit status and stderr of the command line in a process of its own."""

    def call(argv: list[str]) -> tuple[int, str]:
        done = forks.run("import sys; from strata.scripts.cli import main; sys.exit(main())", *argv)
        return done.returncode, done.stderr

    return call


def assert_refused(status: int, stderr: str, out: Path, culprits: tuple[str, ...]) -> None:
    lines = stderr.strip().splitlines()
    assert status == 2, stderr
    assert len(lines) == 1, stderr
    for culprit in culprits:
        assert culprit in lines[0]
    assert not out.exists() or not list(out.iterdir())


@pytest.fixture
def good_file(tmp_path: Path) -> Path:
    path = tmp_path / "good.csv"
    path.write_bytes(GOOD_ROWS)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def copied_model(checkpoint, tmp_path: Path) -> Path:
    """A sharded checkpoint that a test may damage."""
    return shutil.copytree(checkpoint("llama-gqa", "sharded"), tmp_path / "model")


def arguments(model: Path, questions: Path, out: Path, *more: str) -> list[str]:
    given = ["score", "--model", str(model), "--questions", str(questions), "--out", str(out)]
    head = [] if "--head" in more else ["--head", "yes-no"]
    return [*given, "--devices", "cpu", *head, *more]


BAD_FILES = {
    "missing prompt column": (b"id,A,B\n1,a,b\n", ("prompt",)),
    "missing option columns": (b"id,prompt\n1,x\n", ("A",)),
    "duplicate id": (b"id,prompt,A,B\n17,x,a,b\n17,y,a,b\n", ("17", "row 2")),
    "unknown answer letter": (b"id,prompt,A,B,answer\n1,x,a,b,Q\n", ("'Q'", "answer", "row 1")),
    "answer without an option": (b"id,prompt,A,B,answer\n1,x,a,b,C\n", ("'C'", "answer", "row 1")),
    "empty file": (b"", ("empty",)),
    "header only": (b"id,prompt,A,B\n", ("no",)),
    "wrong encoding": (b"id,prompt,A,B\n1,\xff\xfe\xff,a,b\n", ("UTF-8",)),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_question_files(case, checkpoint, tmp_path, out, capsys):
    content, culprits = BAD_FILES[case]
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    status, stderr = call(arguments(checkpoint("llama-gqa"), path, out), capsys)
    assert_refused(status, stderr, out, ("bad.csv", *culprits))


def test_a_question_file_that_is_not_there(checkpoint, tmp_path, out, capsys):
    status, stderr = call(arguments(checkpoint("llama-gqa"), tmp_path / "nowhere.csv", out), capsys)
    assert_refused(status, stderr, out, ("nowhere.csv",))


def test_a_directory_without_config(tmp_path, good_file, out, capsys):
    (tmp_path / "bare").mkdir()
    status, stderr = call(arguments(tmp_path / "bare", good_file, out), capsys)
    assert_refused(status, stderr, out, ("bare", "config.json"))


def test_a_shard_that_is_absent(copied_model, good_file, out, capsys):
    shard = sorted(copied_model.glob("*.safetensors"))[1]
    shard.unlink()
    status, stderr = call(arguments(copied_model, good_file, out), capsys)
    assert_refused(status, stderr, out, (shard.name,))


@pytest.mark.parametrize("num_bytes", [-100, 4, 0], ids=["data cut", "header cut", "nothing left"])
def test_a_truncated_shard(num_bytes, copied_model, good_file, out, capsys):
    shard = sorted(copied_model.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:num_bytes])
    status, stderr = call(arguments(copied_model, good_file, out), capsys)
    assert_refused(status, stderr, out, (shard.name,))


def test_a_directory_without_weights(copied_model, good_file, out, capsys):
    for path in copied_model.glob("*.safetensors*"):
        path.unlink()
    status, stderr = call(arguments(copied_model, good_file, out), capsys)
    assert_refused(status, stderr, out, ("model", "safetensors"))


def test_an_adapter_of_another_width(checkpoint, tmp_path, good_file, out, capsys):
    config = CONFIGS["llama-gqa"]()
    config.hidden_size = 64
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "wide")
    more = ("--adapter", str(tmp_path / "wide"))
    status, stderr = call(arguments(checkpoint("llama-gqa"), good_file, out, *more), capsys)
    assert_refused(status, stderr, out, ("wide", "64", "32"))


def test_an_adapter_directory_without_an_adapter(checkpoint, tmp_path, good_file, out, capsys):
    more = ("--adapter", str(tmp_path))
    status, stderr = call(arguments(checkpoint("llama-gqa"), good_file, out, *more), capsys)
    assert_refused(status, stderr, out, ("adapter_config.json",))


@pytest.mark.parametrize("head", ["yes-no", "letters"])
def test_labels_that_the_tokenizer_does_not_know(head, copied_model, good_file, out, capsys):
    build_letterless_tokenizer().save_pretrained(copied_model)
    status, stderr = call(arguments(copied_model, good_file, out, "--head", head), capsys)
    assert_refused(status, stderr, out, ("label", "unknown"))


def test_a_binary_head_that_the_checkpoint_lacks(checkpoint, good_file, out, capsys):
    status, stderr = call(arguments(checkpoint("llama-gqa"), good_file, out, "--head", "binary"), capsys)
    assert_refused(status, stderr, out, ("binary", "score"))


def test_a_device_that_is_not_there(checkpoint, good_file, out, capsys):
    more = ("--devices", "cuda:99")
    status, stderr = call(arguments(checkpoint("llama-gqa"), good_file, out, *more), capsys)
    assert_refused(status, stderr, out, ("cuda:99",))


def test_a_template_that_is_not_there(checkpoint, good_file, out, capsys):
    more = ("--template", "no-such-template")
    status, stderr = call(arguments(checkpoint("llama-gqa"), good_file, out, *more), capsys)
    assert_refused(status, stderr, out, ("no-such-template",))


def test_old_results_outlive_a_refused_run(checkpoint, tmp_path, out, capsys):
    bad = tmp_path / "bad.csv"
    bad.write_bytes(b"id,prompt,A,B\n1,x,a,b\n1,y,a,b\n")
    out.mkdir()
    (out / "submission.csv").write_text("id,prediction\n")
    assert call(arguments(checkpoint("llama-gqa"), bad, out), capsys)[0] == 2
    assert [path.name for path in out.iterdir()] == ["submission.csv"]


ODD_ROWS = {
    "an empty option": "3,Is it?,So it is.,yes,,A\n",
    "a repeated option": "3,Is it?,So it is.,yes,yes,A\n",
    "a missing context": "3,Is it?,,yes,no,A\n",
    "longer than the window": f"3,{'Is it or is it not? ' * 100},So it is.,yes,no,A\n",
    "no answer": "3,Is it?,So it is.,yes,no,\n",
}


@pytest.fixture
def odd_file(tmp_path: Path):
    def write(kind: str) -> Path:
        path = tmp_path / "odd.csv"
        path.write_bytes(GOOD_ROWS + ODD_ROWS[kind].encode())
        return path

    return write


@pytest.mark.parametrize("kind", ODD_ROWS)
def test_an_odd_row_is_scored_and_listed(kind, odd_file, checkpoint, out, capsys):
    more = ("--max-tokens", "400")
    status, stderr = call(arguments(checkpoint("llama-gqa"), odd_file(kind), out, *more), capsys)
    assert status == 0, stderr
    assert len(stderr.strip().splitlines()) < 10
    with (out / "submission.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert all(sorted(row["prediction"].split()) == ["A", "B"] for row in rows)
    listed = json.loads((out / "run.json").read_text())["warnings"]["rows"]
    assert [entry for entry in listed.values() if entry["ids"] == ["3"] and entry["count"] == 1]
    assert any(name in stderr for name in listed)


@pytest.mark.parametrize("kind", ODD_ROWS)
def test_strict_refuses_an_odd_row(kind, odd_file, checkpoint, out, capsys):
    more = ("--max-tokens", "400", "--strict")
    status, stderr = call(arguments(checkpoint("llama-gqa"), odd_file(kind), out, *more), capsys)
    assert_refused(status, stderr, out, ("odd.csv", "row 3", "'3'"))


def test_good_rows_leave_no_warnings(checkpoint, good_file, out, capsys):
    status, stderr = call(arguments(checkpoint("llama-gqa"), good_file, out, "--strict"), capsys)
    assert (status, stderr) == (0, "")
    assert json.loads((out / "run.json").read_text())["warnings"]["rows"] == {}


def test_a_child_process_refuses_a_bad_file(checkpoint, tmp_path, out, call_in_a_child):
    path = tmp_path / "bad.csv"
    path.write_bytes(BAD_FILES["duplicate id"][0])
    status, stderr = call_in_a_child(arguments(checkpoint("llama-gqa"), path, out))
    assert_refused(status, stderr, out, ("bad.csv", "17"))


@pytest.mark.slow
def test_a_child_process_refuses_a_truncated_shard(copied_model, good_file, out, call_in_a_child):
    shard = sorted(copied_model.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    status, stderr = call_in_a_child(arguments(copied_model, good_file, out))
    assert_refused(status, stderr, out, (shard.name,))


def test_a_child_process_scores_an_odd_file(odd_file, checkpoint, out, call_in_a_child):
    status, stderr = call_in_a_child(arguments(checkpoint("llama-gqa"), odd_file("an empty option"), out))
    assert status == 0, stderr
    assert "Traceback" not in stderr
    assert (out / "submission.csv").read_text().count("\n") == 4
