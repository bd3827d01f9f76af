"""The notebook of a kernel: few cells that call functions of `cells`, whose text the first one carries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strata.engine.deadline import parse_duration_s
from strata.engine.types import InputError
from strata.scripts.kaggle.kernel import SETTINGS

CELLS = Path(__file__).with_name("cells.py")
LEEWAY_S = 600.0
"""After the deadline, before the notebook ends the run itself."""


def build_notebook(
    *, questions: str, deadline: str, uninstall: Sequence[str] = (), acceptance: bool = False
) -> Any:
    """The notebook, as nbformat's object.

    Args:
        questions: the name of the question file.
        deadline: of the whole notebook.
        uninstall: packages of the image that have to go.
        acceptance: also run the acceptance on the GPU.

    Raises:
        InputError: nbformat is not installed.
    """
    try:
        from nbformat import v4
    except ImportError:
        raise InputError(
            'strata kaggle needs nbformat; expected pip install "strata-score[kaggle]"'
        ) from None
    timeout_s = parse_duration_s("--deadline", deadline) + LEEWAY_S
    code = [
        f"{CELLS.read_text(encoding='utf-8')}\n\n"
        "STARTED_S = time.time()\nPLACES = kernel_places()\n"
        f"print(leave_first_answer(PLACES, {questions!r}))",
        f"install(PLACES, {list(uninstall)!r})",
        'strata("start", "doctor")',
        f"run(PLACES, STARTED_S, {timeout_s!r}, {SETTINGS!r})",
        "print(head(PLACES))",
        "from IPython.display import HTML, display\n\ndisplay(HTML(report_html(PLACES)))",
    ]
    if acceptance:
        code.append('strata("start", "bench", "gpu")')
    cells = [v4.new_markdown_cell(TEXT), *(v4.new_code_cell(source) for source in code)]
    for number, cell in enumerate(cells):
        # Ids are random otherwise, and the same input should give the same file.
        cell["id"] = f"strata-{number}"
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return v4.new_notebook(cells=cells, metadata=metadata)


TEXT = """\
# strata

Written by `strata kaggle`. The first cell leaves a whole `submission.csv` before anything can fail; then
strata is installed from the mounted wheels, the machine is examined, and the pipeline runs against its
deadline, with `submission.csv` written anew whenever more is known.
"""
