"""What a peer's process is given and gives back: an .npz of questions in, one JSON line out. Knows no peer.

A peer runs as `python -m strata.scripts.bench.peers.<module>`, so that it may live in another interpreter,
and so that its memory and threads are gone when it ends. Of strata it needs this folder, the baselines and
their imports; besides the peer itself that is torch, numpy and safetensors.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from strata.scripts.bench.process_memory import peak_resident_bytes
from strata.scripts.bench.workloads.baselines import BaselineRun
from strata.scripts.bench.workloads.synthetic_questions import SyntheticQuestion

WARM_UP_TOKENS = 8


def num_usable_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True, eq=False)
class PeerJob:
    """What a peer is given to score.

    Attributes:
        checkpoint: Hugging Face folder of a plain Llama; a tokenizer is not needed.
        questions: AirLLM and accelerate want the options of a question to be equally long.
        work_folder: For scratch files; may need as much disk as the checkpoint has while the peer runs.
        num_threads: Threads to compute with; all usable cores by default.
    """

    checkpoint: Path
    questions: Sequence[SyntheticQuestion]
    work_folder: Path
    num_threads: int = field(default_factory=num_usable_cores)


@dataclass(frozen=True, kw_only=True, eq=False)
class PeerRun(BaselineRun):
    """A peer's seconds and scores, with what is known of its process.

    `versions` maps package to version. `peak_rss_bytes` is the most memory the process held, loading and
    converting included; 0 where the system does not tell.
    """

    versions: dict[str, str]
    peak_rss_bytes: int


def save_questions(path: Path, questions: Sequence[SyntheticQuestion]) -> None:
    """Writes questions as an .npz that `load_questions` reads; options may differ in number and length."""
    arrays = {"num_questions": np.array(len(questions))}
    for index, question in enumerate(questions):
        arrays[f"prefix_{index}"] = question.prefix_ids
        arrays[f"num_options_{index}"] = np.array(len(question.option_ids))
        arrays |= {f"option_{index}_{number}": ids for number, ids in enumerate(question.option_ids)}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_questions(path: Path) -> list[SyntheticQuestion]:
    """Reads what `save_questions` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return [
            SyntheticQuestion(
                arrays[f"prefix_{index}"],
                tuple(
                    arrays[f"option_{index}_{number}"]
                    for number in range(int(arrays[f"num_options_{index}"]))
                ),
            )
            for index in range(int(arrays["num_questions"]))
        ]


def warm_up_question(question: SyntheticQuestion) -> SyntheticQuestion:
    """A few tokens of a question: one untimed call on them touches every weight."""
    return SyntheticQuestion(
        question.prefix_ids[:WARM_UP_TOKENS], tuple(ids[:1] for ids in question.option_ids)
    )


def find_missing(modules: Iterable[str]) -> str | None:
    """`needs airllm, accelerate`: those of the modules this interpreter cannot find, or None."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(missing)}" if missing else None


def peer_parser(prog: str) -> argparse.ArgumentParser:
    """The flags all peers share."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}")
    parser.add_argument("--checkpoint", type=Path, required=True, help="Hugging Face folder of safetensors")
    parser.add_argument("--questions", type=Path, required=True, help="an .npz of save_questions")
    parser.add_argument(
        "--work-folder", type=Path, required=True, help="an existing folder for scratch files"
    )
    parser.add_argument("--threads", type=int, default=num_usable_cores(), help="threads to compute with")
    return parser


def read_job(given: argparse.Namespace) -> PeerJob:
    """The job that a peer's command line describes."""
    return PeerJob(
        checkpoint=given.checkpoint,
        questions=load_questions(given.questions),
        work_folder=given.work_folder,
        num_threads=given.threads,
    )


def answer_request(
    measure: Callable[[], BaselineRun], *, missing: str | None, packages: Sequence[str]
) -> int:
    """Runs a peer and prints its answer as the last line of stdout; all that it prints goes to stderr.

    Args:
        measure: The peer's work.
        missing: Why it cannot run here, or None.
        packages: Distributions whose versions are told.

    Returns:
        The exit status, 0: that a peer is absent is an answer too.
    """
    if missing is not None:
        print(json.dumps({"missing": missing}), flush=True)
        return 0
    with contextlib.redirect_stdout(sys.stderr):
        run = measure()
    answer = {
        "question_s": list(run.question_s),
        "scores": [[float(score) for score in row] for row in run.scores],
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "peak_rss_bytes": peak_resident_bytes(),
    }
    print(json.dumps(answer), flush=True)
    return 0


def parse_answer(stdout: str, *, num_questions: int, num_options: int) -> PeerRun | str:
    """Reads the last line that a peer printed.

    Returns:
        What it measured, or why it cannot run in its interpreter.

    Raises:
        ValueError: The line is no such answer, or scores are not finite numbers [num_questions, num_options].
    """
    lines = stdout.strip().splitlines()
    answer = _parse_object(lines[-1] if lines else "")
    if "missing" in answer:
        return str(answer["missing"])
    try:
        scores = np.array(answer["scores"], dtype=np.float32)
        seconds = tuple(float(value) for value in answer["question_s"])
        versions, peak_rss_bytes = dict(answer["versions"]), int(answer["peak_rss_bytes"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"answer lacks or garbles {error}: {lines[-1][:200]!r}") from error
    if scores.shape != (num_questions, num_options) or len(seconds) != num_questions:
        raise ValueError(
            f"scores of shape {scores.shape} and {len(seconds)} times: "
            f"expected {(num_questions, num_options)} and {num_questions}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores hold inf or NaN: expected finite numbers")
    return PeerRun(question_s=seconds, scores=scores, versions=versions, peak_rss_bytes=peak_rss_bytes)


def _parse_object(line: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"last line {line[:200]!r}: expected a JSON object") from error
    if not isinstance(answer, dict):
        raise ValueError(f"last line {line[:200]!r}: expected a JSON object")
    return answer
