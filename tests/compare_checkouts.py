"""Proves that two checkouts of this project score the same, bit for bit: before and after a refactoring.

    python tests/compare_checkouts.py BEFORE AFTER [--shared DIR] [--only NAME ...] [--work DIR]

Both checkouts run every configuration, each in a process of its own, with plans fixed by flags and one
thread a device. Compared are scores.parquet (every float exactly), run.json but for seconds, rates and the
memory taken, and every other file that is left byte by byte, report.html and timeline.json aside. Knows the
command line and the files of a run, but no module behind them: those may move.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from filecmp import cmp
from pathlib import Path
from time import perf_counter

import pyarrow.parquet as pq
from compared_checkpoints import gather_inputs
from compared_records import compare_records, reason_for

FOLDERS = ("engine", "kernels", "training", "retrieval", "scripts")
PARTIAL, SCORES = "out/partial.jsonl", "out/scores.parquet"
RUNNER = """\
import os, sys
from pathlib import Path

home, checkout, partial, *arguments = sys.argv[1:]
# An installed strata must not fill the gaps of a checkout.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import strata
strata.__path__ = [str(Path(home) / "strata")]

def interrupt_once(descriptor, fsync=os.fsync):
    fsync(descriptor)
    if Path(partial).is_file() and len(Path(partial).read_bytes().splitlines()) > 1:
        os.fsync = fsync
        raise KeyboardInterrupt

if partial:
    os.fsync = interrupt_once
from strata.scripts.cli import main
status = main(arguments)
modules = [module for name, module in sys.modules.items() if name.startswith("strata.")]
files = [Path(module.__file__).resolve() for module in modules if getattr(module, "__file__", None)]
assert files and all(file.is_relative_to(checkout) for file in files), f"not only of {checkout}: {files}"
raise SystemExit(status)
"""
"""Runs a command with the modules of one checkout and no others. With `partial`, the file of what is scored
so far, it is interrupted as by Ctrl-C once that holds the first group of questions."""
FIXED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
FIXED |= {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
DECODER: dict[str, object] = {"devices": "cpu", "dtype": "float32", "hidden_store": "ram"}
DECODER |= {"micro_batch_tokens": 512, "num_groups": 1}
"""With the number of resident layers, all that a plan would choose by the machine's rates and free memory."""
STORIES = {**DECODER, "resident_layers": 5, "head": "yes-no", "limit": 24}
ENCODER = {"devices": "cpu", "dtype": "float32", "micro_batch_tokens": 2048, "limit": 60}
STREAMED = {"resident_layers": 0, "num_groups": 3, "micro_batch_tokens": 64}
TWO_DEVICES = {"devices": "cpu,cpu"}
USUAL: dict[str, tuple[str, Mapping[str, object]]] = {
    "demo": ("demo.csv", {**DECODER, "resident_layers": 4}),
    "stories260k": ("kaggle200.csv", STORIES),
    "stories-contrast": ("kaggle200.csv", STORIES),
    "bert": ("contexts.csv", ENCODER),
    "deberta": ("contexts.csv", ENCODER),
}
"""Questions and flags of a model where a case names no others."""
NOT_BY_BYTES = ("run.json", "report.html", "timeline.json", "scores.parquet")


@dataclass(frozen=True)
class Case:
    """A configuration: flags of `strata score` and names of what it reads (see `gather_inputs`).

    `packed_as`: a format to `strata pack` the model in; `interrupted`: after the first group, then resumed.
    """

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()
    model: str = "stories260k"
    questions: str = ""
    packed_as: str = ""
    interrupted: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all it reads: model, questions, adapters."""
        return (self.model, self.questions or USUAL[self.model][0], *self.adapters)

    def commands(self, paths: Mapping[str, Path]) -> Iterator[list[str]]:
        """The command lines that leave its results in the current folder; the last scores to the end."""
        model, questions, *adapters = (str(paths[name]) for name in self.inputs)
        if self.packed_as:
            yield ["pack", "--model", model, "--format", self.packed_as, "--out", "packed"]
            model = "packed"
        score = ["score", "--model", model, "--questions", questions, "--out", "out", "--save-prompts"]
        score += [part for adapter in adapters for part in ("--adapter", adapter)]
        for name, value in {**USUAL[self.model][1], **self.settings}.items():
            score += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        if self.interrupted:
            yield score
            score = [*score, "--resume"]
        yield score


CASES = (
    Case("demo", {}, ("demo-adapter",), "demo"),
    Case("demo-contexts", {"limit": 60, "max_tokens": 200}, ("demo-adapter",), "demo", "contexts.csv"),
    Case("demo-verify", {**STREAMED, "head": "letters", "verify": True, "limit": 60}, (), "demo"),
    Case("yes-no-all", {"limit": 200}),
    Case("letters", {"head": "letters"}),
    Case("letters-rotate", {"head": "letters", "debias": "rotate", "limit": 6}),
    Case("loglik", {"head": "loglik"}),
    Case("binary", {"head": "binary"}, ("binary",)),
    Case("contrast", {"head": "contrast"}, ("lora",), "stories-contrast"),
    Case("one-adapter", {}, ("lora",)),
    Case("two-adapters", {}, ("lora", "dora")),
    Case("two-adapters-letters", {"head": "letters"}, ("lora", "dora")),
    Case("two-devices", TWO_DEVICES),
    Case("streamed", STREAMED),
    Case("streamed-two-devices", {**STREAMED, **TWO_DEVICES, "limit": 12}, ("lora", "dora")),
    Case("store-disk", {"hidden_store": "disk", "micro_batch_tokens": 64}),
    Case("int8", {"dtype": "int8", "int8_check_questions": 4}),
    Case("bfloat16", {"dtype": "bfloat16"}),
    Case("max-tokens", {"head": "letters", "max_tokens": 200}),
    Case("packed-nf4-verify", {"verify": True}, packed_as="nf4"),
    Case("packed-int8-verify", {**STREAMED, "verify": True}, packed_as="int8"),
    Case("cache", {**STREAMED, "cache_dir": "cache"}),
    Case("resumed", {"head": "loglik", "num_groups": 4}, interrupted=True),
    Case("resumed-two-adapters", STREAMED, ("lora", "dora"), interrupted=True),
    Case("deberta", {}, (), "deberta"),
    Case("deberta-two-devices", TWO_DEVICES, (), "deberta"),
    Case("bert", {}, (), "bert"),
    Case("bert-one-adapter", {}, ("bert-adapter-1",), "bert"),
    Case("bert-two-adapters", {"max_tokens": 100}, ("bert-adapter-1", "bert-adapter-2"), "bert"),
)


@dataclass(frozen=True)
class Checkout:
    """A checkout and the folder in which it is the package `strata`."""

    label: str
    root: Path
    home: Path

    def run(self, case: Case, paths: Mapping[str, Path], folder: Path) -> tuple[float, str]:
        """Runs a case in a new folder. Returns seconds, and what went wrong, empty if nothing did."""
        folder.mkdir(parents=True)
        started, trouble = perf_counter(), ""
        *first, last = case.commands(paths)
        for arguments in first:
            stops = arguments[0] == "score"
            trouble = trouble or self._run(arguments, folder, stops=stops)
            if stops and not trouble:
                shutil.copy(folder / PARTIAL, folder / "interrupted.jsonl")
        trouble = trouble or self._run(last, folder)
        return perf_counter() - started, trouble

    def _run(self, arguments: list[str], folder: Path, *, stops: bool = False) -> str:
        """Runs one command; with `stops` it has to end as an interrupted one does."""
        # An empty cache folder: no calibration of this machine changes a plan.
        places = {"PYTHONPATH": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", RUNNER, self.home, self.root, PARTIAL if stops else "", *arguments],
            cwd=folder,
            env={**os.environ, **FIXED, **places},
            capture_output=True,
            text=True,
        )
        # Older checkouts end with 1 where newer ones end with 130, as shells have it.
        if done.returncode in ((1, 130) if stops else (0,)) and (not stops or (folder / PARTIAL).is_file()):
            return ""
        said = done.stderr.strip().splitlines() or ["nothing on stderr"]
        return f"{self.label}: strata {arguments[0]} ended with {done.returncode}: {said[-1]}"


def open_checkout(label: str, root: Path, work: Path) -> Checkout:
    """Links a checkout's folders as the package `strata`."""
    root, home = root.resolve(), work / label
    (home / "strata").mkdir(parents=True)
    for name in FOLDERS:
        if not (root / name).is_dir():
            raise SystemExit(f"{root}: no folder {name}; expected a checkout of this project")
        (home / "strata" / name).symlink_to(root / name)
    return Checkout(label, root, home)


def compare_folders(before: Path, after: Path) -> Iterator[str]:
    """What differs between the files that two runs left."""
    yield from compare_scores(before / SCORES, after / SCORES)
    names = {path.relative_to(side) for side in (before, after) for path in side.rglob("*") if path.is_file()}
    for name in sorted(names):
        if not all((side / name).is_file() for side in (before, after)):
            yield f"{name} only {'before' if (before / name).is_file() else 'after'}"
        elif name.name not in NOT_BY_BYTES and not cmp(before / name, after / name, shallow=False):
            yield f"{name}: other bytes"
    records = [json.loads((side / "out/run.json").read_text(encoding="ascii")) for side in (before, after)]
    yield from compare_records(*records)


def compare_scores(before: Path, after: Path) -> Iterator[str]:
    """Columns of two scores.parquet that differ; a float's repr tells every value and the sign of zero."""
    left, right = pq.ParquetFile(before).read(), pq.ParquetFile(after).read()
    if not left.schema.equals(right.schema, check_metadata=True) or len(left) != len(right):
        yield "scores.parquet: other columns or number of rows"
        return
    for name in left.column_names:
        pairs = zip(left.column(name).to_pylist(), right.column(name).to_pylist(), strict=True)
        if count := sum(repr(one) != repr(other) for one, other in pairs):
            yield f"scores.parquet: {name} in {count} of {len(left)} rows"


def compare_case(case: Case, paths: Mapping[str, Path], work: Path, *checkouts: Checkout) -> bool:
    """Runs a case in both checkouts at once, prints its line, and returns whether they are equal."""
    before, after = folders = [work / case.name / checkout.label for checkout in checkouts]
    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda side, folder: side.run(case, paths, folder), checkouts, folders))
    differences, note = [trouble for _, trouble in ran if trouble], ""
    if not differences:
        found = [(difference, reason_for(difference)) for difference in compare_folders(before, after)]
        differences = [difference for difference, reason in found if reason is None]
        intended = sorted({reason for _, reason in found if reason is not None})
        same = cmp(before / SCORES, after / SCORES, shallow=False)
        note = f" (bytes of scores.parquet {'equal' if same else 'differ'})"
        note += f" but as intended: {'; '.join(intended)}" if intended else ""
    seconds = " ".join(f"{seconds:5.1f} s" for seconds, _ in ran)
    print(f"{case.name:22}{seconds}  {'; '.join(differences) or 'equal'}{note}", flush=True)
    return not differences


def compare(arguments: argparse.Namespace, work: Path) -> int:
    """Runs the cases, prints a line each and a summary. Returns the exit status: 1 when any differs."""
    before, after = (open_checkout(label, getattr(arguments, label), work) for label in ("before", "after"))
    shared = (arguments.shared or after.root.parent / "shared").resolve()
    cases = [case for case in CASES if not arguments.only or case.name in arguments.only]
    wanted = {name for case in cases for name in case.inputs}
    paths = gather_inputs(before.root / "scripts/demo_data", shared, work / "made", wanted)
    results = []
    for case in cases:
        if absent := [name for name in case.inputs if name not in paths]:
            print(f"{case.name:22}skipped: {shared} lacks what it takes for {', '.join(absent)}", flush=True)
        else:
            results.append(compare_case(case, paths, work / "runs", before, after))
    print(f"{len(results)} configurations, {results.count(False)} differ")
    return int(False in results)


def main() -> int:
    """Reads the command line."""
    # Transformers would take the tests' folder `kernels`, beside this script, for the package of that name.
    del sys.path[0]
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("before", type=Path, help="root of a checkout")
    parser.add_argument("after", type=Path, help="root of another one")
    parser.add_argument("--shared", type=Path, help="holds models/stories260k and data/kaggle200.csv")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--work", type=Path, help="absent or empty folder in which all files stay")
    arguments = parser.parse_args()
    if arguments.work is None:
        with tempfile.TemporaryDirectory() as folder:
            return compare(arguments, Path(folder).resolve())
    if arguments.work.exists() and any(arguments.work.iterdir()):
        raise SystemExit(f"--work: {arguments.work} is not empty")
    return compare(arguments, arguments.work.resolve())


if __name__ == "__main__":
    sys.exit(main())
