"""Every command of the documentation is understood, and run on tiny files in the place of those it names.

What cannot be run here stands in NOT_RUN with what holds it instead; its flags are read like the others'.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
import tyro

from strata.scripts import cli
from strata.scripts.cli import main
from strata.scripts.docs.flag_tables import commands, flags_of

from .commands import PAGES, ROOT, Command, all_commands, commands_of, make_workspace

pytestmark = pytest.mark.usefixtures("fixed_rates")

NOT_RUN = {
    "strata demo": "tests/scripts/test_demo.py",
    "strata score --model DIR --questions test.csv --out runs/cluster --ray": "tests/engine/run/cluster",
    "strata run scripts/pipelines": "real models; tests/scripts/test_pipelines.py",
    "strata plan --model model-00001-of-00004.gguf": "a split file; tests/engine/gguf",
    "strata bench": "minutes; tests/scripts/bench",
    "strata score --help": "tests/scripts/test_cli.py",
    "strata --version": "tests/scripts/test_cli.py",
}
OF_LABELS = {"DIR": "CLASSIFIER", "LORA": "LORA-OF-LABELS", "train.csv": "texts.csv"}
"""What `--task classify` is given in the place of questions and their models."""
OWN_TESTS = ("strata kaggle", "strata doctor", "strata lm-eval")
"""Commands whose pages come with tests of their own."""

STRATA = [command for command in all_commands() if command.words[0].endswith("strata")]
OTHERS = [command for command in all_commands() if not command.words[0].endswith("strata")]
CONFIGS = {name: get_type_hints(function, include_extras=True)["config"] for name, function in commands()}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def shown(command: Command) -> str:
    return " ".join(("strata", *command.words[1:]))


def is_run(command: Command) -> bool:
    if not command.words[0].endswith("strata"):
        return False
    return not shown(command).startswith((*NOT_RUN, *OWN_TESTS))


def test_pages_have_commands() -> None:
    assert len(STRATA) > 40
    assert {command.words[1] for command in STRATA} > {
        "score",
        "plan",
        "run",
        "pack",
        "train",
        "index",
        "search",
    }
    for start in NOT_RUN:
        assert any(shown(command).startswith(start) for command in STRATA), f"no page has {start}"


@pytest.mark.parametrize("command", [each for each in STRATA if each.words[1] in CONFIGS], ids=str)
def test_flags_are_understood(command: Command) -> None:
    name, *flags = (word.replace("HOST:PORT", "head:6379") for word in command.words[1:])
    if "--help" in flags:
        return
    config = tyro.cli(CONFIGS[name], args=flags, config=cli.PARSING_OF.get(name, cli.PARSING))
    if hasattr(config, "check"):
        config.check()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_in_the_text_exist(page: Path) -> None:
    """`strata score --flag` in a sentence: the command has the flag."""
    for text in re.findall(r"`(strata [^`]*)`", page.read_text(encoding="utf-8").replace("\n", " ")):
        words = text.split()
        if len(words) < 2 or words[1] not in CONFIGS:
            continue
        known = {
            flag
            for row in flags_of(CONFIGS[words[1]], paired=True)
            for flag in re.findall(r"--[a-z0-9-]+", row.name)
        }
        used = set(re.findall(r"--[a-z0-9-]+", text))
        assert used <= known | {"--help"}, text


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_what_is_not_ours_names_what_is_there(command: Command) -> None:
    """Make targets and extras exist; the rest is one of the few lines that set a machine up."""
    program, *words = command.words
    if program == "make":
        done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif program.endswith("pip"):
        extras = re.findall(r"\[([a-z,-]+)\]", str(command))
        known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert extras
        for extra in extras[0].split(","):
            assert re.search(rf"^{extra} = \[", known, re.M), extra
    else:
        assert str(command) in ("python3 -m venv .venv", ".venv/bin/python -m pytest")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    make_workspace(folder, checkpoint)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, commands_of(page)))], ids=name_of)
def test_commands_run(
    page: Path,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A page at a time, in its order: a command finds what the one before it left."""
    monkeypatch.chdir(shutil.copytree(workspace, tmp_path / "files"))
    for command in filter(is_run, commands_of(page)):
        words = list(command.words[1:])
        if "classify" in words:
            words = [OF_LABELS.get(word, word) for word in words]
        if "--out" in words:
            remove(Path(words[words.index("--out") + 1]))
        status = main([*words, *on_cpu(words)])
        assert status == 0, f"{command}: {capsys.readouterr().err[-2000:]}"


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def on_cpu(words: list[str]) -> tuple[str, ...]:
    """Flags that keep a tiny model's run short on any machine."""
    if words[0] in ("score", "probe") and "--devices" not in words:
        return ("--devices", "cpu")
    if words[0] == "train":
        return ("--devices", "cpu", "--dtype", "float32") if "--dtype" not in words else ("--devices", "cpu")
    return ()
