"""The command line: `strata COMMAND ...`. Knows flags and exit codes; a command loads its heavy modules."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from tyro.extras import SubcommandApp

from strata.engine.config import PlanConfig, ScoreConfig
from strata.engine.memory_errors import MemoryRanOutError, first_sentence, is_out_of_memory
from strata.engine.pack.config import PackConfig
from strata.engine.pipeline.settings import RunSettings
from strata.engine.probe.config import ProbeConfig
from strata.engine.types import InputError, as_one_line
from strata.retrieval.index_config import IndexConfig
from strata.retrieval.search_config import SearchConfig
from strata.scripts.bench.cli import bench_app
from strata.scripts.doctor.config import DoctorConfig
from strata.scripts.kaggle.config import KaggleSettings
from strata.scripts.stoppable import run_stoppable
from strata.training.config import TrainConfig

DISTRIBUTION = "strata-score"
DESCRIPTION = (
    "Scores multiple-choice questions with decoder language models far too big for the machine. "
    "`strata --version` prints which version is installed."
)
PARSING = (tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction, tyro.conf.FlagCreatePairsOff)
PAIRED_PARSING = PARSING[:2]
"""Where a setting that is on by default has both flags: `pack --double-quant`, `--no-double-quant`."""
LISTED_PARSING = (PARSING[0], PARSING[2])
"""Where a list replaces its default instead of adding to it: `train --lora-targets q_proj v_proj`."""
LISTED_FLAGS = {"train": ("--lora-targets",)}
"""Flags of such lists: where one is repeated, the values of all count."""
PARSING_OF = {"pack": PAIRED_PARSING, "train": LISTED_PARSING}

app = SubcommandApp()


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo."""

    out: Path = Path("runs/demo")
    """Folder for what the demo leaves."""
    real: bool = False
    """Ask SmolLM2-135M-Instruct, which `make real-models` installs, instead of the bundled model."""


@app.command(name="score")
def score(config: ScoreConfig) -> int:
    """Score a question file; leaves submission.csv, scores.parquet, run.json and report.html.

    Example: strata score --model DIR --questions test.csv --out runs/first --head letters --debias rotate
    """
    from strata.scripts.score import run_score

    return run_score(replace(config, progress=True))


@app.command(name="plan")
def plan(config: PlanConfig) -> int:
    """Print what `strata score` with these flags would do: time, memory, bytes, bottleneck. Reads no weights.

    Example: strata plan --model DIR --questions test.csv --memory-gib 14

    Example: strata plan --profile kaggle-2xt4 --shape llama2-70b --questions 4000 --tokens 1500
    """
    from strata.scripts.plan import run_plan

    return run_plan(config)


@dataclass(frozen=True, kw_only=True)
class RunFlags(RunSettings):
    """`RunSettings`, the file of which comes without a flag."""

    config: tyro.conf.Positional[Path]
    """YAML file of members, stages, ensemble, calibration and deadline (docs/run.md)."""


@app.command(name="run")
def run(config: RunFlags) -> int:
    """Run a whole system from one YAML file: retrieval, members, stages, ensemble, calibration, deadline.

    Example: strata run pipeline.yaml --questions test.csv --out runs/first --set deadline=8.5h
    """
    from strata.scripts.run import run_run

    return run_run(replace(config, progress=True))


@dataclass(frozen=True, kw_only=True)
class KaggleFlags(KaggleSettings):
    """`KaggleSettings`, the file of which comes without a flag."""

    config: tyro.conf.Positional[Path]
    """YAML file of `strata run` (docs/run.md); its paths may be those of Kaggle or your own."""


@app.command(name="kaggle")
def kaggle(config: KaggleFlags) -> int:
    """Write all that has to be uploaded to run a pipeline as a Kaggle kernel: wheels, notebook, metadata.

    Example: strata kaggle pipeline.yaml --owner NAME --competition kaggle-llm-science-exam --out runs/kaggle
    """
    from strata.scripts.kaggle.kaggle import run_kaggle

    return run_kaggle(config)


@app.command(name="doctor")
def doctor(config: DoctorConfig) -> int:
    """Tell what this machine is, what is missing for which feature, and what strata would do here.

    Example: strata doctor --folder /mnt/models
    """
    from strata.scripts.doctor.doctor import run_doctor

    return run_doctor(config)


@app.command(name="pack")
def pack(config: PackConfig) -> int:
    """Convert a checkpoint to int8, NF4 or another dtype, one weight in memory at a time; resumes.

    Example: strata pack --model DIR --format nf4 --out DIR-nf4 --verify
    """
    from strata.scripts.pack import run_pack

    return run_pack(replace(config, progress=True))


@app.command(name="train")
def train(config: TrainConfig) -> int:
    """Train a LoRA adapter (or all weights) on questions with answers; leaves what `strata score` reads.

    Example: strata train --model DIR --questions train.csv --valid-share 0.1 --out runs/lora
    """
    from strata.scripts.train import run_train

    return run_train(replace(config, progress=True))


@app.command(name="probe")
def probe(config: ProbeConfig) -> int:
    """Report MAP@3 and accuracy of a linear probe after every layer, cross-validated, to choose --layers by.

    Example: strata probe --model DIR --questions train.csv --limit 500 --out runs/probe
    """
    from strata.scripts.probe import run_probe

    return run_probe(replace(config, progress=True))


@app.command(name="index")
def index(config: IndexConfig) -> int:
    """Cut a corpus into chunks and index them for BM25, and for encoders if any are given; resumes.

    Example: strata index --corpus enwiki-cirrussearch-content.json.gz --out wiki-index --chunk-chars 512
    """
    from strata.scripts.index import run_index

    return run_index(replace(config, progress=config.progress or sys.stderr.isatty()))


@app.command(name="search")
def search(config: SearchConfig) -> int:
    """Find a context for every question, or measure rankings against judgements.

    Example: strata search --index wiki-index --questions test.csv --out with_context.csv --tokenizer DIR
    """
    from strata.scripts.search import run_search

    return run_search(replace(config, progress=config.progress or sys.stderr.isatty()))


@app.command(name="demo")
def demo(config: DemoConfig) -> int:
    """Run the whole main job in under a minute, with no download.

    Example: strata demo
    """
    if config.real:
        from strata.scripts.demo_real import run_real_demo

        return run_real_demo(config.out)
    from strata.scripts.demo import run_demo

    return run_demo(config.out)


@app.command(name="bench")
def bench() -> int:
    """Measure this machine, and strata on it; see `strata bench --help`.

    Example: strata bench sweep --shape tinyllama-1.1b
    """
    raise AssertionError("main hands bench commands to another parser")


@app.command(name="lm-eval")
def lm_eval() -> int:
    """Run lm-evaluation-harness, with `--model strata` beside its own; all flags are that tool's.

    Example: strata lm-eval --model strata --model_args pretrained=DIR --tasks arc_challenge --num_fewshot 5
    """
    raise AssertionError("main hands all arguments to lm-evaluation-harness")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    Args:
        arguments: those of the process by default, which then is expected to end.

    Returns:
        0 done, 2 bad input or usage, 130 stopped by SIGINT, 143 by SIGTERM, 1 anything else.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_stoppable(lambda: run_command(given), until_exit=arguments is None)


def run_command(arguments: list[str]) -> int:
    """Runs a command and returns its exit status; a stop is the caller's to tell."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # The harness fetches its tasks' data sets; strata itself fetches nothing.
    if arguments[:1] != ["lm-eval"]:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        if arguments == ["--version"]:
            print(f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}")
            return 0
        if arguments[:1] == ["bench"]:
            return _parse(bench_app, "strata bench", arguments[1:])
        if arguments[:1] == ["lm-eval"]:
            from strata.scripts.bridges.lm_eval_command import run_lm_eval

            return run_lm_eval(arguments[1:])
        return _parse(app, "strata", arguments)
    except InputError as error:
        print(f"strata: {error}", file=sys.stderr)
        return 2
    except (OSError, FloatingPointError, MemoryRanOutError) as error:
        print(f"strata: {as_one_line(str(error))}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"strata: memory ran out ({as_one_line(first_sentence(error))})", file=sys.stderr)
        return 1


def _parse(commands: SubcommandApp, program: str, arguments: list[str]) -> int:
    parsing = PARSING_OF.get(arguments[0], PARSING) if arguments else PARSING
    for flag in LISTED_FLAGS.get(arguments[0], ()) if arguments else ():
        arguments = join_repeated(arguments, flag)
    try:
        return commands.cli(prog=program, description=DESCRIPTION, args=arguments, config=parsing)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0


def join_repeated(arguments: Sequence[str], flag: str) -> list[str]:
    """The arguments with the values of all occurrences of a flag behind one, the first values first."""
    others: list[str] = []
    values: list[str] = []
    taken_by = others
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if argument.startswith("-"):
            taken_by = values if name.replace("_", "-") == flag else others
            if taken_by is values:
                values += [value] if sign else []
                continue
        taken_by.append(argument)
    return [*others, flag, *values] if len(others) < len(arguments) else others


if __name__ == "__main__":
    sys.exit(main())
