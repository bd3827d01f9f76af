"""What the notebook's cells do: a whole submission first, and no step that raises."""

from __future__ import annotations

import ast
import sys
import time
from pathlib import Path

import pytest

from strata.scripts.kaggle import cells
from strata.scripts.kaggle.cells import (
    Places,
    find_places,
    first_answer,
    follow,
    head,
    install,
    leave_first_answer,
    report_html,
    run,
    walk_mounts,
)

SAMPLE = "id,prediction\n7,A B C\nx,A B C\n"
ASKED = 'id,prompt,A,B,C,D\n7,"Which, of\nthese?",a,b,c,d\nx,Why?,a,b,c,d\n'


@pytest.fixture
def places(tmp_path) -> Places:
    """A kernel's folders with one competition."""
    competition = tmp_path / "input" / "competitions" / "exam"
    for folder in (competition, tmp_path / "working", tmp_path / "scratch"):
        folder.mkdir(parents=True)
    (competition / "test.csv").write_text(ASKED, encoding="utf-8")
    (competition / "sample_submission.csv").write_text(SAMPLE, encoding="utf-8")
    return Places(input=tmp_path / "input", working=tmp_path / "working", scratch=tmp_path / "scratch")


def test_the_cells_need_nothing_but_the_standard_library():
    tree = ast.parse(Path(cells.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {*sys.stdlib_module_names, "__future__"}


def test_the_sample_is_the_first_answer(places):
    told = leave_first_answer(places, "test.csv")
    assert told == "submission.csv: 2 rows, the sample submission's"
    assert (places.working / "submission.csv").read_text() == SAMPLE


def test_questions_that_the_sample_does_not_have_get_a_guess(places, tmp_path):
    sample, asked = tmp_path / "sample.csv", tmp_path / "asked.csv"
    sample.write_text("id,prediction\n1,A\n", encoding="utf-8")
    asked.write_text("\ufeff" + ASKED, encoding="utf-8")
    rows, told = first_answer(sample, asked)
    assert rows == [["id", "prediction"], ["7", "A B C"], ["x", "A B C"]]
    assert told == "A B C for every question"
    assert first_answer(sample, tmp_path / "asked.parquet")[0][1:] == [["1", "A"]]
    asked.write_text("row_id,text\n1,a\n", encoding="utf-8")
    assert first_answer(sample, asked)[0][1:] == [["1", "A"]]


def test_without_either_the_notebook_goes_on(places):
    for path in places.input.rglob("*.csv"):
        path.unlink()
    assert leave_first_answer(places, "test.csv").startswith("NO FIRST ANSWER: ")
    assert not (places.working / "submission.csv").exists()
    assert head(places) == "NO SUBMISSION.CSV"


def test_shallow_files_come_first(tmp_path):
    for name in ("a/b/c/deep", "z/shallow", "top"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = [path.name for path in walk_mounts(tmp_path) if path.is_file()]
    assert files == ["top", "shallow", "deep"]


def test_without_wheels_or_settings_it_is_said_and_the_first_answer_is_left(places, capsys):
    leave_first_answer(places, "test.csv")
    (places.working / "submission.csv").unlink()
    assert not install(places)
    assert run(places, time.time(), 60.0, "strata-kernel.json") == 1
    told = capsys.readouterr().out
    for words in ("NOTHING INSTALLED", "NOTHING RUN", "THE FIRST ANSWER", "ENDED WITH STATUS 1"):
        assert words in told
    assert (places.working / "submission.csv").read_text() == SAMPLE
    assert head(places) == f"{SAMPLE}(2 rows)"


def test_a_command_is_followed_and_stopped_when_its_time_is_over(capsys):
    said = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert follow([sys.executable, "-c", said]) == 3
    assert set(capsys.readouterr().out.split()) == {"out", "err"}
    assert follow([sys.executable, "-c", "import time; time.sleep(600)"], timeout_s=0.2) != 0


def test_the_report_is_shown_inside_a_frame(places):
    assert "no report.html" in report_html(places)
    (places.working / "report.html").write_text('<p title="x">5 > 3 & so on</p>', encoding="utf-8")
    assert 'srcdoc="&lt;p title=&quot;x&quot;&gt;5 &gt; 3 &amp; so on' in report_html(places)


def test_the_folders_may_be_others(places, monkeypatch):
    monkeypatch.setenv("STRATA_KAGGLE_INPUT", str(places.input))
    monkeypatch.setenv("STRATA_KAGGLE_WORKING", str(places.working))
    monkeypatch.setenv("STRATA_KAGGLE_SCRATCH", str(places.scratch))
    assert find_places() == places
    monkeypatch.setenv("STRATA_KAGGLE_INPUT", str(places.input / "absent"))
    assert find_places() is None
