"""Accuracy and MAP@3 of real language models on real questions, by way of asking.

`acc_norm_<model>_<set>` is the accuracy of log-likelihoods divided by characters, lm-evaluation-harness'
acc_norm where the set has no contexts; `map3_<model>_<way>_<set>` and `accuracy_<model>_<way>_<set>` are of
all ways. What no model would reach stands beside them: `map3_longest_<set>` and `map3_uniform_<set>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from strata.engine.files import write_text_atomically
from strata.scripts.bench.accuracy.cells import Cell, fill_cell, list_cells
from strata.scripts.bench.accuracy.config import AccuracyBenchConfig
from strata.scripts.bench.record import RESULTS, append_result, asked_settings, print_environment
from strata.scripts.real_models import find_real_models

Filled: TypeAlias = Sequence[tuple[Cell, Mapping[str, Any]]]


def run_accuracy_bench(config: AccuracyBenchConfig) -> int:
    """Fills all cells, prints the table and appends the figures. Returns the exit status."""
    print_environment()
    config.folder.mkdir(parents=True, exist_ok=True)
    models = config.models or find_real_models()
    cells = list(list_cells(config, models))
    filled = []
    for number, cell in enumerate(cells, start=1):
        metrics = fill_cell(cell, config)
        filled.append((cell, metrics))
        print(
            f"{number}/{len(cells)} {cell.name}: MAP@3 {metrics['map_at_3']:.3f}, "
            f"accuracy {metrics['accuracy']:.3f}",
            flush=True,
        )
    table = "\n".join(tabulate(filled)) + "\n"
    print(table)
    if config.table is not None:
        write_text_atomically(config.table, table)
    asked = asked_settings(config) | {"models": [model.stem for model in models]}
    append_result("accuracy", {"config": asked, **figures_of(filled)}, RESULTS)
    return 0


def figures_of(filled: Filled) -> dict[str, float]:
    """The record's keys."""
    figures: dict[str, float] = {}
    for cell, metrics in filled:
        heuristics = metrics["heuristics"]
        figures[f"map3_longest_{cell.question_set}"] = heuristics["longest_option_map_at_3"]
        figures[f"map3_uniform_{cell.question_set}"] = heuristics["uniform_map_at_3"]
        figures[f"num_questions_{cell.question_set}"] = metrics["num_answered"]
        figures[f"map3_{cell.name}"] = metrics["map_at_3"]
        figures[f"accuracy_{cell.name}"] = metrics["accuracy"]
        if cell.way == "loglik":
            figures[f"acc_norm_{cell.model.stem}_{cell.question_set}"] = metrics["accuracy"]
    return figures


def tabulate(filled: Filled) -> Iterator[str]:
    """Lines of Markdown: a row a model and way, a column a set; MAP@3, and the accuracy in brackets."""
    sets = list(dict.fromkeys(cell.question_set for cell, _ in filled))
    of_set = {cell.question_set: metrics for cell, metrics in filled}
    counts = [f"{name} ({of_set[name]['num_answered']})" for name in sets]
    yield f"| model | way | {' | '.join(counts)} |"
    yield "|---" * (2 + len(sets)) + "|"
    for name, key in (("longest option", "longest_option_map_at_3"), ("uniform guess", "uniform_map_at_3")):
        values = [f"{of_set[one]['heuristics'][key]:.3f}" for one in sets]
        yield f"| | {name} | {' | '.join(values)} |"
    by_row: dict[tuple[str, str], dict[str, str]] = {}
    for cell, metrics in filled:
        shown = f"{metrics['map_at_3']:.3f} ({metrics['accuracy']:.3f})"
        by_row.setdefault((cell.model.stem, cell.way), {})[cell.question_set] = shown
    for (model, way), shown_by_set in sorted(by_row.items(), key=lambda row: row[0][0]):
        yield f"| {model} | {way} | {' | '.join(shown_by_set.get(one, '') for one in sets)} |"
