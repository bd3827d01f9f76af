"""`strata score`: runs the job and prints what came out."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strata.engine.config import ScoreConfig
from strata.engine.report.members import member_names, member_table, rows_by_member
from strata.engine.report.summary import describe_int8_check, describe_speed, resolved
from strata.engine.results.partial_scores import resume_hint
from strata.engine.results.tables import best_names
from strata.engine.run.score import ScoreRun, score_questions
from strata.engine.types import as_one_line

NUM_SHOWN = 5


def run_score(config: ScoreConfig) -> int:
    """Scores the questions and prints a summary; warnings go to stderr. Returns the exit status."""
    try:
        run = score_questions(config)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(resume_hint(config.out)) from interrupt
    print_warnings(run.record["warnings"])
    print_summary(run)
    return 0


def print_warnings(warnings: dict) -> None:
    """One line a kind of odd row, with its count, and one a message."""
    console = Console(stderr=True, highlight=False)
    for kind, rows in warnings["rows"].items():
        first = ", ".join(rows["ids"][:3])
        line = as_one_line(f"warning: {kind}: {rows['count']} question(s), id {first}")
        console.print(line, markup=False, soft_wrap=True)
    for message in warnings["messages"]:
        console.print(as_one_line(f"warning: {message}"), markup=False, soft_wrap=True)


def print_summary(run: ScoreRun) -> None:
    """The first answers, accuracy where known, speed, and where the files are."""
    console = Console(highlight=False)
    measured, plan = run.record["measured"], run.record["plan"]
    for row in run.scores[:NUM_SHOWN]:
        line = f"{row.question.id}: {best_names(row)}  margin {row.margin:.3f}"
        console.print(as_one_line(line), markup=False)
    if len(run.scores) > NUM_SHOWN:
        head, dtype = (resolved(run.record, name) for name in ("head", "dtype"))
        console.print(f"... {len(run.scores)} questions, head {head}, {dtype}", markup=False)
    for adapter, taken in plan.get("adapter_settings", {}).items():
        console.print(describe_adapter_settings(adapter, taken), markup=False, soft_wrap=True)
    if "normalize" in plan:
        console.print(describe_normalization(plan["normalize"]), soft_wrap=True)
    print_members(run, console)
    if metrics := run.record["metrics"]:
        console.print(describe_metrics(metrics))
    sharing = ""
    if "trie_nodes" in measured:
        saved = measured["tokens_per_option_run"] / measured["trie_nodes"]
        sharing = f"; one path at a time would compute {saved:.1f}x as many"
    if given := measured["questions_with_context"]:
        column = run.record["run_info"]["config"]["context_column"]
        console.print(
            f"contexts of {given} question(s) are from column {column} (--context-column none: without)",
            soft_wrap=True,
        )
    if cut := measured["truncated_questions"]:
        lost = measured["truncated_context_tokens"]
        console.print(f"contexts of {cut} question(s) were shortened by {lost:,} tokens in all")
    if int8 := describe_int8_check(measured):
        console.print(int8, soft_wrap=True)
    console.print(
        f"{measured['tokens_computed']:,} tokens in {measured['seconds_by_phase']['sweep']:.1f} s "
        f"({measured['tok_per_s']:,.0f} tok/s, {describe_speed(run.record, measured)})"
        f"{sharing}",
        soft_wrap=True,
    )
    files = ["submission.csv", "scores.parquet", "run.json", "report.html"]
    files += [name for name in ("timeline.json", "prompts.jsonl") if (run.out / name).is_file()]
    console.print(f"{', '.join(files)} in {run.out}", markup=False, soft_wrap=True)


def print_members(run: ScoreRun, console: Console) -> None:
    """A table of what each of several members reaches alone; nothing for one."""
    header, *rows = member_table(run.record, rows_by_member(member_names(run.record), run.scores)) or [[]]
    if not rows:
        return
    table = Table(*header, box=None)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def describe_metrics(metrics: dict) -> str:
    """One line of what was right, heuristics beside it."""
    heuristics = metrics["heuristics"]
    uniform = f"MAP@3 {metrics['map_at_3']:.3f} (uniform guess {heuristics['uniform_map_at_3']:.3f}"
    if "macro_f1" in metrics:
        return (
            f"{uniform}), accuracy {metrics['accuracy']:.3f} (always the commonest label "
            f"{heuristics['commonest_label_accuracy']:.3f}), macro F1 {metrics['macro_f1']:.3f}"
        )
    longest = heuristics["longest_option_map_at_3"]
    return f"{uniform}, longest option {longest:.3f}), accuracy {metrics['accuracy']:.3f}"


def describe_adapter_settings(adapter: str, taken: dict) -> str:
    """What a run took from an adapter's folder, in one line."""
    told = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in taken.items())
    return f"as {adapter} was trained: {told} (flags win; --adapter-settings ignore takes nothing)"


def describe_normalization(normalize: str) -> str:
    """What log-likelihoods were divided by, in one line."""
    if normalize == "none":
        return "log-likelihoods are sums (--normalize none)"
    return (
        f"log-likelihoods are divided by the option's length in {normalize}s (--normalize {normalize}); "
        "the column scores of scores.parquet keeps the sums"
    )
