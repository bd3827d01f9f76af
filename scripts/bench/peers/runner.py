"""Runs a peer in a process of its own, in any interpreter, and reads its answer. Loads no peer itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from strata.engine.types import InputError
from strata.scripts.bench.peers.exchange import PeerRun, parse_answer, save_questions
from strata.scripts.bench.workloads.baselines import SyntheticQuestion

# Each as its users run it, at its best settings.
PEERS = ("airllm", "accelerate_disk", "llama_cpp_bf16", "llama_cpp_q8_0", "llama_cpp_q4_0")
# Name -> the module of this folder, and flags of its own. The two beyond PEERS do by hand what strata is for:
# the prefix once into a KV cache, options behind it. That reads every weight twice a question.
COMMANDS = {
    "airllm": ("airllm",),
    "accelerate_disk": ("accelerate_disk",),
    "llama_cpp_bf16": ("llama_cpp", "--matrix-type", "bf16"),
    "llama_cpp_q8_0": ("llama_cpp", "--matrix-type", "q8_0"),
    "llama_cpp_q4_0": ("llama_cpp", "--matrix-type", "q4_0"),
    "airllm_shared_prefix": ("airllm", "--share-prefix"),
    "accelerate_disk_shared_prefix": ("accelerate_disk", "--share-prefix"),
}
PACKAGE = "strata.scripts.bench.peers"
SHOWN_CHARACTERS = 300


def measure_peer(
    name: str,
    checkpoint: Path,
    questions: Sequence[SyntheticQuestion],
    work_folder: Path,
    *,
    python: Path | None = None,
    num_threads: int | None = None,
    timeout_s: float | None = None,
) -> PeerRun | str:
    """Time one peer on questions that all have the same number of options.

    The page cache is left as it is, so peers that read weights again for every question may find them there.

    Args:
        name: One of PEERS, or another key of COMMANDS.
        checkpoint: Hugging Face folder of a plain Llama, for instance of `random_checkpoint`.
        questions: What to score; AirLLM and accelerate want options of equal length.
        work_folder: Made when missing; may need as much disk as the checkpoint has while the peer runs.
        python: An interpreter that has the peer, torch, numpy, safetensors and psutil, but need not have
            strata; this one by default.
        num_threads: Threads to compute with; all usable cores by default.
        timeout_s: The process is ended after so many seconds.

    Returns:
        What it measured, or in one line why there is nothing: not installed, failed, too slow.

    Raises:
        InputError: Unknown name, no such interpreter, or no questions.
    """
    if name not in COMMANDS:
        raise InputError(f"peer {name!r}: expected one of {', '.join(COMMANDS)}")
    if python is not None and not python.is_file():
        raise InputError(f"interpreter {python} is no file: expected a Python executable")
    if not questions:
        raise InputError("questions are empty: expected at least one")
    work_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work_folder, prefix=f"{name}-") as scratch:
        command = _command(name, checkpoint, questions, Path(scratch), python, num_threads)
        try:
            done = subprocess.run(
                command,
                cwd=scratch,
                env=os.environ | {"PYTHONPATH": _import_path(Path(scratch))},
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"took more than {timeout_s:g} s"
    if done.returncode != 0:
        return f"ended with status {done.returncode}: {_last_line(done.stderr)}"
    try:
        num_options = len(questions[0].option_ids)
        return parse_answer(done.stdout, num_questions=len(questions), num_options=num_options)
    except ValueError as error:
        return f"gave no usable answer: {error}"


def _command(
    name: str,
    checkpoint: Path,
    questions: Sequence[SyntheticQuestion],
    scratch: Path,
    python: Path | None,
    num_threads: int | None,
) -> list[str]:
    module, *flags = COMMANDS[name]
    save_questions(scratch / "questions.npz", questions)
    # absolute() and not resolve(): a virtual environment's interpreter is a link, and is found by its name.
    interpreter = sys.executable if python is None else str(python.absolute())
    return [
        *(interpreter, "-m", f"{PACKAGE}.{module}", *flags),
        *("--checkpoint", str(checkpoint.resolve())),
        *("--questions", str((scratch / "questions.npz").resolve())),
        *("--work-folder", str(scratch.resolve())),
        *("--threads", str(num_threads or _num_usable_cores())),
    ]


def _import_path(scratch: Path) -> str:
    """PYTHONPATH that offers `strata` and nothing else of this interpreter's packages."""
    scripts = Path(__file__).resolve().parents[2]
    package = scratch.resolve() / "import_path" / "strata"
    package.mkdir(parents=True)
    (package / "scripts").symlink_to(scripts, target_is_directory=True)
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(package.parent), *([inherited] if inherited else [])])


def _num_usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][-SHOWN_CHARACTERS:] if lines else "it printed nothing"
