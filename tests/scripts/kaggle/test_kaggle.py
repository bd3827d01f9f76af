"""`strata kaggle`: the files that it leaves, by their own formats' rules."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import nbformat
import pytest

from strata.scripts.cli import main
from strata.scripts.kaggle import kaggle, own_wheel

from .test_wheelhouse import make_wheel

PIPELINE = """\
members:
  small: {model: /kaggle/input/datasets/you/small, head: letters}
  big: {model: /kaggle/input/models/meta/llama/transformers/70b/1, adapter: lora, head: yes-no}
"""


@pytest.fixture
def given(tmp_path, monkeypatch) -> list[str]:
    """Arguments that succeed without a package index; what they leave is in out/."""
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(PIPELINE, encoding="utf-8")
    make_wheel(tmp_path / "wheels", "tyro", "1.0.17")
    ours = make_wheel(tmp_path / "ours", "strata_score", "0.1.0", "tyro>=1", "torch>=2.8")
    flags = {"--owner": "me", "--out": "out", "--wheels": "wheels", "--wheel": str(ours)}
    return ["kaggle", "p.yaml", *(text for pair in flags.items() for text in pair), "--competition", "exam"]


def test_what_is_left(given, capsys):
    assert main(given) == 0
    files = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "kernel/kernel-metadata.json",
        "kernel/strata.ipynb",
        "wheelhouse/dataset-metadata.json",
        "wheelhouse/strata-kernel-pipeline.yaml",
        "wheelhouse/strata-kernel.json",
        "wheelhouse/strata_score-0.1.0-py3-none-any.whl",
        "wheelhouse/tyro-1.0.17-py3-none-any.whl",
    }
    assert "2 wheel(s)" in capsys.readouterr().out
    readme = Path("out/README.md").read_text()
    for command in (
        "kaggle datasets create -p wheelhouse",
        "kaggle datasets create -p lora -r tar",
        "kaggle kernels push -p kernel",
        "kaggle competitions submit exam -k me/strata-run -v N -f submission.csv",
    ):
        assert command in readme


def test_the_notebook_is_valid_and_its_cells_are_python(given):
    assert main(given) == 0
    notebook = nbformat.read("out/kernel/strata.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell["source"] for cell in notebook.cells if cell["cell_type"] == "code"]
    for source in code:
        ast.parse(source)
    assert "install(PLACES, ['torchao'])" in code
    # One file whatever the day: nothing random in it.
    first = Path("out/kernel/strata.ipynb").read_bytes()
    assert main([*given, "--overwrite"]) == 0
    assert Path("out/kernel/strata.ipynb").read_bytes() == first


def test_torchao_stays_where_no_adapter_is_wanted(given):
    Path("p.yaml").write_text("members: {small: {model: /kaggle/input/datasets/you/small, head: letters}}\n")
    assert main(given) == 0
    assert "torchao" not in Path("out/kernel/strata.ipynb").read_text()


def test_metadata(given):
    assert main(given) == 0
    kernel = json.loads(Path("out/kernel/kernel-metadata.json").read_text())
    assert kernel["id"] == "me/strata-run"
    assert kernel["code_file"] == "strata.ipynb"
    assert (kernel["machine_shape"], kernel["enable_internet"]) == ("NvidiaTeslaT4", "false")
    assert kernel["dataset_sources"] == ["me/strata-run-wheels", "you/small", "me/lora"]
    assert kernel["model_sources"] == ["meta/llama/transformers/70b/1"]
    assert kernel["competition_sources"] == ["exam"]
    dataset = json.loads(Path("out/wheelhouse/dataset-metadata.json").read_text())
    assert dataset["id"] == kernel["dataset_sources"][0]


def test_what_is_there_already_is_not_replaced_unasked(given, capsys):
    assert main(given) == 0
    capsys.readouterr()
    assert main(given) == 2
    assert "--out: out/wheelhouse is there already; expected --overwrite" in capsys.readouterr().err


def test_without_nbformat_one_line_names_the_extra(given, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbformat", None)
    assert main(given) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert 'pip install "strata-score[kaggle]"' in line
    assert not Path("out").exists()


def test_acceptance_is_refused_where_there_is_no_such_bench(given, monkeypatch, capsys):
    monkeypatch.setattr(kaggle, "find_spec", lambda name: None)
    assert main([*given, "--acceptance"]) == 2
    assert "no `strata bench gpu`" in capsys.readouterr().err
    monkeypatch.setattr(kaggle, "find_spec", lambda name: name)
    assert main([*given, "--acceptance"]) == 0
    notebook = nbformat.read("out/kernel/strata.ipynb", as_version=4)
    assert notebook.cells[-1]["source"] == 'strata("start", "bench", "gpu")'


def test_an_installed_strata_has_to_be_given_its_wheel(given, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(own_wheel, "ROOT", tmp_path)
    place = given.index("--wheel")
    assert main(given[:place] + given[place + 2 :]) == 2
    assert "--wheel: strata runs from an installed package" in capsys.readouterr().err
    assert main([*given, "--wheel", "absent.whl", "--overwrite"]) == 2
    assert "--wheel: absent.whl is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wheels", "absent"], "--wheels: absent is not there; expected a folder of wheels"),
        (["--image", "absent.txt"], "--image: absent.txt is not there; expected a file"),
        (["--extra", "evil"], "--extra: 'evil' is unknown; expected one of adapters, calibration"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_replaced(given, flags, message, capsys):
    assert main(given) == 0
    left = sorted(Path("out").rglob("*"))
    capsys.readouterr()
    assert main([*given, "--overwrite", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(Path("out").rglob("*")) == left


def test_a_path_that_is_nowhere_is_told(given, capsys):
    """The pipeline's adapter is a folder of this machine, and is not there."""
    assert main(given) == 0
    assert "warning: lora: not on this machine; expected in the data set me/lora" in capsys.readouterr().err


def test_what_only_answers_can_fit_is_refused_here_not_on_the_kernel(given, capsys):
    fits = f"{PIPELINE}calibration: temperature\n"
    Path("p.yaml").write_text(fits, encoding="utf-8")
    assert main(given) == 2
    assert "a competition's questions have no answers; expected `fitted: FILE`" in capsys.readouterr().err
    assert not Path("out").exists()
    Path("fitted.json").touch()
    Path("p.yaml").write_text(f"{fits}fitted: fitted.json\n", encoding="utf-8")
    assert main(given) == 0
    assert Path("out/wheelhouse/fitted.json").is_file()
