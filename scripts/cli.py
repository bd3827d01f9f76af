"""The command line: `strata COMMAND ...`. Knows flags and exit codes; a command loads its heavy modules."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from tyro.extras import SubcommandApp

from strata.engine.score_config import PlanConfig, ScoreConfig
from strata.engine.types import InputError
from strata.scripts.bench.configs import SweepBenchConfig

DESCRIPTION = "Scores multiple-choice questions with decoder language models far too big for the machine."
PARSING = (tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction, tyro.conf.FlagCreatePairsOff)

app = SubcommandApp()
bench_app = SubcommandApp()


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo."""

    out: Path = Path("runs/demo")
    """Folder for what the demo leaves."""


@app.command(name="score")
def score(config: ScoreConfig) -> int:
    """Score a question file; leaves submission.csv, scores.parquet, run.json and report.html.

    Example: strata score --model DIR --questions test.csv --out runs/first --head letters --debias rotate
    """
    from strata.scripts.score import run_score

    return run_score(replace(config, progress=config.progress or sys.stderr.isatty()))


@app.command(name="plan")
def plan(config: PlanConfig) -> int:
    """Print what `strata score` with these flags would do: time, memory, bytes, bottleneck. Reads no weights.

    Example: strata plan --model DIR --questions test.csv --memory-gib 14
    """
    from strata.scripts.plan import run_plan

    return run_plan(config)


@app.command(name="demo")
def demo(config: DemoConfig) -> int:
    """Run the whole main job in under a minute, with no download.

    Example: strata demo
    """
    from strata.scripts.demo import run_demo

    return run_demo(config.out)


@app.command(name="bench")
def bench() -> int:
    """Measure this machine, and strata on it; see `strata bench --help`.

    Example: strata bench sweep --shape tinyllama-1.1b
    """
    raise AssertionError("main hands bench commands to their own parser")


@bench_app.command(name="sweep")
def bench_sweep(config: SweepBenchConfig) -> int:
    """Compare the sweep with the GEMM roofline and Hugging Face loops, on random weights of a real shape.

    Example: strata bench sweep --shape tinyllama-1.1b
    """
    from strata.scripts.bench.sweep import run_sweep_bench

    return run_sweep_bench(config)


@bench_app.command(name="checkpoint")
def bench_checkpoint(config: SweepBenchConfig) -> int:
    """Only make the random checkpoint of `strata bench sweep`.

    Example: strata bench checkpoint --shape llama2-7b
    """
    from strata.scripts.bench.sweep import make_checkpoint

    print(make_checkpoint(config))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0 done, 2 bad input or usage, 1 anything else."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    stop_on_sigterm()
    try:
        if arguments[:1] == ["bench"]:
            return _parse(bench_app, "strata bench", arguments[1:])
        return _parse(app, "strata", arguments)
    except InputError as error:
        print(f"strata: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("strata: interrupted", file=sys.stderr)
        return 1
    except (OSError, FloatingPointError) as error:
        print(f"strata: {error}", file=sys.stderr)
        return 1


def stop_on_sigterm() -> None:
    """Makes SIGTERM end a run as Ctrl-C does, so that run.json tells of it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))


def _parse(commands: SubcommandApp, program: str, arguments: list[str]) -> int:
    try:
        return commands.cli(prog=program, description=DESCRIPTION, args=arguments, config=PARSING)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
