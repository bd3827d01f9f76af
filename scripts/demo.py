"""`strata demo`: the whole main job on bundled questions with a model made on the spot, in under a minute.

Owns what the demo prints. Loads torch only once it runs, so the command line may import it freely.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from strata.engine.metrics import evaluate
from strata.engine.results import best_letters
from strata.engine.types import QuestionScores
from strata.scripts.demo_checkpoint import QUESTIONS_PATH, make_demo_checkpoint

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEAD = "yes-no"
NUM_SHOWN = 8
PROMPT_WIDTH = 56
FILES = {
    "submission.csv": "the three best letters of every question",
    "scores.parquet": "scores and probabilities of every option",
    "run.json": "what was planned and what was measured",
    "report.html": "the same, to look at",
}


def run_demo(out: Path) -> int:
    """Make the demo checkpoint, score the bundled questions with it and print what came out.

    Args:
        out: Folder for everything the demo leaves: `checkpoint/` (reused when whole) and `run/`.

    Returns:
        Exit status, 0.

    Raises:
        InputError: If `out/checkpoint` holds something that is not a demo checkpoint.
    """
    from rich.console import Console

    from strata.engine.score import ScoreConfig, score_questions

    console = Console(highlight=False)
    console.print(f"Making a small untrained Llama in {out / 'checkpoint'} ...", markup=False, soft_wrap=True)
    checkpoint = make_demo_checkpoint(out / "checkpoint")
    config = ScoreConfig(model=checkpoint, questions=QUESTIONS_PATH, out=out / "run", head=HEAD)
    print_demo(console, score_questions(config).scores, out)
    return 0


def print_demo(console: Console, scores: Sequence[QuestionScores], out: Path) -> None:
    """Print the first answers, MAP@3 beside the heuristics, what that means, and where the files are."""
    console.print()
    console.print(tabulate_answers(scores[:NUM_SHOWN], len(scores)))
    console.print()
    console.print(tabulate_metrics(scores))
    console.print()
    for line in explain_demo(out):
        console.print(line, markup=False, soft_wrap=True)


def tabulate_answers(scores: Sequence[QuestionScores], num_scored: int) -> Table:
    """One row a question: id, shortened prompt, the three best letters, the right one, the margin."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"The first {len(scores)} of {num_scored} answers", title_justify="left")
    table.add_column("id", no_wrap=True)
    table.add_column("question")
    table.add_column("best three", no_wrap=True)
    table.add_column("right", justify="center", no_wrap=True)
    table.add_column("margin", justify="right", no_wrap=True)
    for row in scores:
        question = row.question
        right = "-" if question.answer is None else best_letters((question.answer,))
        cells = (question.id, shorten(question.prompt), best_letters(row.order), right, f"{row.margin:.3f}")
        table.add_row(*map(Text, cells))
    return table


def tabulate_metrics(scores: Sequence[QuestionScores]) -> Table:
    """MAP@3 of this run beside a uniform guess and the longest option first."""
    from rich.table import Table

    metrics = evaluate(scores)
    assert metrics is not None, "the bundled questions have answers"
    heuristics = metrics["heuristics"]
    table = Table(
        title=f"MAP@3 over {metrics['num_answered']} questions", title_justify="left", show_header=False
    )
    table.add_row("this untrained model", f"{metrics['map_at_3']:.3f}")
    table.add_row("uniform guess", f"{heuristics['uniform_map_at_3']:.3f}")
    table.add_row("longest option first", f"{heuristics['longest_option_map_at_3']:.3f}")
    return table


def explain_demo(out: Path) -> list[str]:
    """The closing lines: what the figures mean, how to go on, where the files are."""
    questions = shlex.quote(str(QUESTIONS_PATH))
    found = [
        f"  {out / 'run' / name}  {what}" for name, what in FILES.items() if (out / "run" / name).is_file()
    ]
    return [
        "This model's weights are random and were never trained, so its answers are no better than guesses,",
        "and over this few questions its MAP@3 lands anywhere near the uniform guess. To score with a real",
        "model, give a folder as downloaded from Hugging Face:",
        f"  strata score --model DIR --questions {questions} --out runs/first --head {HEAD}",
        "",
        "Files:",
        *found,
        f"  {out / 'checkpoint'}  the untrained model",
    ]


def shorten(text: str, width: int = PROMPT_WIDTH) -> str:
    """The text, or its beginning and "..." when it is longer than `width` characters."""
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."
