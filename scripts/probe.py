"""`strata probe`: how well each layer's hidden states answer questions, to choose --layers by."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from strata.engine.files import write_text_atomically
from strata.engine.jobs.job import Session
from strata.engine.probe.config import ProbeConfig
from strata.engine.probe.cross_validation import (
    ENOUGH,
    LayerReport,
    check_installed,
    enough_layers,
    probe_layers,
)
from strata.engine.probe.layer_readouts import read_layers
from strata.engine.run.artefacts import check_out
from strata.engine.types import RunWarnings, as_one_line

REPORT_NAME = "probe.json"


def run_probe(config: ProbeConfig) -> int:
    """Sweeps once, fits a probe a layer, prints a table and leaves probe.json. Returns the exit status."""
    config.check()
    check_out(config.out)
    check_installed()
    config.out.mkdir(parents=True, exist_ok=True)
    warnings = RunWarnings()
    session = Session(warnings=warnings, folder=config.out, shows_progress=config.progress)
    found = read_layers(config, session)
    reports = probe_layers(found.questions, found.states, folds=config.folds, seed=config.seed)
    content = {
        "num_questions": len(found.questions),
        "folds": config.folds,
        "layer_fraction_at_99_percent": enough_layers(reports) / len(reports),
        "layers": [asdict(report) for report in reports],
    }
    write_text_atomically(config.out / REPORT_NAME, json.dumps(content, indent=2) + "\n")
    Console(highlight=False).print(tabulate(reports, len(found.questions)))
    print(f"--layers {enough_layers(reports)} reaches {ENOUGH:.0%} of what all {len(reports)} layers reach")
    for line in warnings.lines():
        print(as_one_line(f"warning: {line}"), file=sys.stderr)
    return 0


def tabulate(reports: list[LayerReport], num_questions: int) -> Table:
    """One row a layer; the best MAP@3 is marked."""
    best = max(report.map_at_3 for report in reports)
    table = Table(title=f"{num_questions} question(s), cross-validated", title_justify="left")
    for name in ("layers", "MAP@3", "accuracy", ""):
        table.add_column(name, justify="right")
    for report in reports:
        mark = "best" if report.map_at_3 == best else ""
        table.add_row(str(report.layers), f"{report.map_at_3:.3f}", f"{report.accuracy:.3f}", mark)
    return table
