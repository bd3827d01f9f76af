"""`strata demo`: the whole way on bundled passages and questions with a bundled small model, in seconds.

Flow: passages -> index -> search (a context for every question) -> score, with and without contexts. Owns
what the demo prints. Loads torch only once it runs, so the command line may import it freely.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from strata.engine.questions.metrics import evaluate
from strata.engine.questions.question_file import read_questions
from strata.engine.results.tables import best_letters
from strata.engine.types import Question, QuestionScores, RunWarnings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

DATA = Path(__file__).parent / "demo_data"
PASSAGES_PATH, QUESTIONS_PATH = DATA / "passages.jsonl", DATA / "questions.csv"
MODEL, ADAPTER = DATA / "model", DATA / "adapter"
CONTEXT_CHUNKS = 1
NUM_SHOWN = 8
PROMPT_WIDTH = 60
FILES = {
    "with_context.csv": "the questions with what the search found",
    "run/submission.csv": "the three best letters of every question",
    "run/scores.parquet": "scores and probabilities of every option",
    "run/run.json": "what was planned and what was measured",
    "run/report.html": "the same, to look at",
}


def run_demo(out: Path) -> int:
    """Indexes the bundled passages, finds contexts, scores, and prints what came out.

    Args:
        out: Folder for everything the demo leaves; what an earlier demo left in it is replaced.

    Returns:
        Exit status, 0.

    Raises:
        InputError: If the packages of the extra `retrieval` are not installed.
    """
    from rich.console import Console

    console = Console(highlight=False)
    asked = find_contexts(out)
    scores = {
        name: score(questions, out / folder)
        for name, questions, folder in (
            ("with retrieval", asked, "run"),
            ("without", QUESTIONS_PATH, "run-closed-book"),
        )
    }
    contexts = {question.id: question for question in read_questions(asked, warnings=RunWarnings())}
    print_demo(console, scores, contexts, out)
    return 0


def find_contexts(out: Path) -> Path:
    """Builds the index and searches it; returns the question file with contexts."""
    from strata.retrieval.index_config import IndexConfig
    from strata.retrieval.search_config import SearchConfig
    from strata.scripts.index import run_index
    from strata.scripts.search import run_search

    index, asked = out / "index", out / "with_context.csv"
    if index.exists():
        shutil.rmtree(index)
    with redirect_stdout(StringIO()):
        run_index(IndexConfig(corpus=(PASSAGES_PATH,), out=index))
        run_search(
            SearchConfig(
                index=index,
                questions=QUESTIONS_PATH,
                out=asked,
                tokenizer=MODEL,
                context_chunks=CONTEXT_CHUNKS,
            )
        )
    return asked


def score(questions: Path, out: Path) -> list[QuestionScores]:
    """Scores a question file with the bundled model and adapter."""
    from strata.engine.config import ScoreConfig
    from strata.engine.run.score import score_questions

    config = ScoreConfig.from_flags(
        model=MODEL, adapter=(ADAPTER,), questions=questions, out=out, dtype="float32", overwrite=True
    )
    return score_questions(config).scores


def print_demo(
    console: Console,
    scores: dict[str, list[QuestionScores]],
    contexts: dict[str, Question],
    out: Path,
) -> None:
    """Prints the first answers, MAP@3 beside baselines, what that means, and where the files are."""
    best = scores["with retrieval"]
    shown = best[:: max(1, len(best) // NUM_SHOWN)][:NUM_SHOWN]
    for table in (tabulate_answers(shown, contexts, len(best)), tabulate_metrics(scores, contexts)):
        console.print()
        console.print(table)
    console.print()
    for line in explain_demo(out):
        console.print(line, markup=False, soft_wrap=True)


def tabulate_answers(
    scores: Sequence[QuestionScores], contexts: dict[str, Question], num_scored: int
) -> Table:
    """One row a question: prompt, page found, best option, three best letters, right letter."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(scores)} of {num_scored} answers", title_justify="left")
    for name in ("question", "page found", "best option", "best three", "right"):
        table.add_column(name)
    for row in scores:
        question = row.question
        page = contexts[question.id].context.split("\n", 1)[0]
        right = "-" if question.answer is None else best_letters((question.answer,))
        option = question.options[row.order[0]]
        cells = (question.prompt, page, option, best_letters(row.order), right)
        table.add_row(*(Text(shorten(cell)) for cell in cells))
    return table


def tabulate_metrics(scores: dict[str, list[QuestionScores]], contexts: dict[str, Question]) -> Table:
    """MAP@3 with and without contexts, and what simpler ways would get."""
    from rich.table import Table

    metrics = {name: evaluate(answers) for name, answers in scores.items()}
    first = next(iter(metrics.values()))
    assert first is not None, "the bundled questions have answers"
    heuristics = first["heuristics"]
    questions = [contexts[row.question.id] for row in scores["with retrieval"]]
    title = f"MAP@3 over {first['num_answered']} questions on things that training never saw"
    table = Table(title=title, title_justify="left", show_header=False)
    rows = {
        **{f"this model, {name}": figures["map_at_3"] for name, figures in metrics.items() if figures},
        "options that stand in the context first": occurrence_map_at_3(questions),
        "longest option first": heuristics["longest_option_map_at_3"],
        "uniform guess": heuristics["uniform_map_at_3"],
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:.3f}")
    return table


def occurrence_map_at_3(questions: Sequence[Question]) -> float:
    """Expected MAP@3 of whoever only looks which options the context holds, and guesses among those.

    With m options in the context, the right one among them, its rank is uniform over 1..m; else it is uniform
    over the ranks that follow.
    """
    total = 0.0
    for question in questions:
        text = question.context.casefold()
        found = [option.casefold() in text for option in question.options]
        assert question.answer is not None, "the bundled questions have answers"
        first, count = (0, sum(found)) if found[question.answer] else (sum(found), len(found) - sum(found))
        ranks = range(first + 1, first + count + 1)
        total += sum(1 / rank for rank in ranks if rank <= 3) / count
    return total / len(questions)


def explain_demo(out: Path) -> list[str]:
    """The closing lines: what the figures mean, how to go on, where the files are."""
    found = [f"  {out / name}  {what}" for name, what in FILES.items() if (out / name).is_file()]
    return [
        "The model has 1.4 million parameters, trained from nothing in minutes, on invented things: it",
        "looks in the passage that the search found, and does little more than the third line's rule.",
        "`make demo-model` trains it again. To score with a real model, give a folder from Hugging Face:",
        "  strata index  --corpus passages.jsonl --out runs/index",
        "  strata search --index runs/index --questions test.csv --out with_context.csv --tokenizer DIR",
        "  strata score  --model DIR --questions with_context.csv --out runs/first",
        "",
        "Files:",
        *found,
    ]


def shorten(text: str, width: int = PROMPT_WIDTH) -> str:
    """The text, or its beginning and "..." when it is longer than `width` characters."""
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."
