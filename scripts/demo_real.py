"""`strata demo --real`: a real language model, SmolLM2-135M-Instruct, answers some of the bundled questions.

Flow: passages -> index -> search (a context for every question) -> log-likelihoods of the options, with and
without contexts. Owns what is printed. The model comes from a package that `make real-models` installs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from strata.engine.questions.metrics import evaluate
from strata.engine.questions.question_file import read_questions
from strata.engine.types import Question, QuestionScores, RunWarnings
from strata.scripts.demo import find_contexts, shorten
from strata.scripts.real_models import SMOLLM2, find_smollm2

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from strata.engine.members.member import Member

NUM_ASKED = 48
NUM_SHOWN = 12
OPTION_WIDTH = 24
CONSOLE_WIDTH = 120
"""Of what is printed to a file."""


def run_real_demo(out: Path) -> int:
    """Finds contexts, scores with SmolLM2, and prints what it picked.

    Args:
        out: Folder for index and questions with contexts; what an earlier demo left in it is replaced.

    Returns:
        Exit status, 0.

    Raises:
        InputError: If the model, or the packages of the extras `retrieval` and `gguf`, are not installed.
    """
    from rich.console import Console

    from strata.engine.members.member import Member

    model = find_smollm2()
    asked = sample_questions(read_questions(find_contexts(out), warnings=RunWarnings()))
    members = {
        "with retrieval": Member(model=model, head="loglik"),
        "without": Member(model=model, head="loglik", context="none"),
    }
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = CONSOLE_WIDTH
    print_real_demo(console, {name: ask(one, asked) for name, one in members.items()})
    return 0


def sample_questions(questions: Sequence[Question]) -> Sequence[Question]:
    """Some of the questions, spread evenly: a real model takes its time."""
    return questions[:: max(1, len(questions) // NUM_ASKED)][:NUM_ASKED]


def ask(member: Member, questions: Sequence[Question]) -> list[QuestionScores]:
    """A member's answers."""
    from strata.engine.machine.settings import MachineSettings
    from strata.engine.scorer import Scorer

    with Scorer.open([member], MachineSettings(dtype="float32")) as scorer:
        return scorer.score(questions)


def print_real_demo(console: Console, answers: Mapping[str, list[QuestionScores]]) -> None:
    """Prints a table of answers, and how many are right beside what no model would reach."""
    console.print()
    console.print(tabulate_picks(answers["with retrieval"][:: NUM_ASKED // NUM_SHOWN]))
    console.print()
    for line in summarize(answers):
        console.print(line, markup=False, soft_wrap=True)


def tabulate_picks(scores: Sequence[QuestionScores]) -> Table:
    """One row a question: prompt, options, the one picked, whether it is right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{SMOLLM2}: answers it finds most likely", title_justify="left")
    for name in ("question", "options", "picked", ""):
        table.add_column(name)
    for row in scores:
        question, best = row.question, row.order[0]
        options = " / ".join(shorten(option, OPTION_WIDTH) for option in question.options)
        verdict = "right" if best == question.answer else "wrong"
        table.add_row(*(Text(cell) for cell in (question.prompt, options, question.options[best], verdict)))
    return table


def summarize(answers: Mapping[str, list[QuestionScores]]) -> Iterator[str]:
    """Lines on how good the answers are."""
    for name, scores in answers.items():
        metrics = evaluate(scores)
        assert metrics is not None, "the bundled questions have answers"
        num_right = round(metrics["accuracy"] * metrics["num_answered"])
        heuristics = metrics["heuristics"]
        yield (
            f"{name}: {num_right} of {metrics['num_answered']} right, MAP@3 {metrics['map_at_3']:.3f} "
            f"(longest option {heuristics['longest_option_map_at_3']:.3f}, "
            f"uniform guess {heuristics['uniform_map_at_3']:.3f})"
        )
