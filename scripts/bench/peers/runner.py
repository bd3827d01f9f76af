"""Runs a peer in another process, in any interpreter, and reads its answer. Loads no peer itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from strata.engine.types import InputError
from strata.scripts.bench.peers.exchange import PeerJob, PeerRun, parse_answer, save_questions

# Each as its users run it, at its best settings.
PEERS = ("airllm", "accelerate_disk", "llama_cpp_bf16", "llama_cpp_q8_0", "llama_cpp_q4_0")
# Name -> the module of this folder, and its flags. The two beyond PEERS do by hand what strata is for: the
# prefix once into a KV cache, options behind it. That reads every weight twice a question.
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
    name: str, job: PeerJob, *, python: Path | None = None, timeout_s: float | None = None
) -> PeerRun | str:
    """Times one peer on questions that all have the same number of options.

    The page cache is left as it is, so peers that read weights again for every question may find them there.

    Args:
        name: One of PEERS, or another key of COMMANDS.
        job: What to score; its work folder is made when missing.
        python: An interpreter that has the peer, torch, numpy and safetensors, but need not have strata;
            this one by default.
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
    if not job.questions:
        raise InputError("questions are empty: expected at least one")
    job.work_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.work_folder, prefix=f"{name}-") as scratch:
        try:
            done = _run(_command(name, job, Path(scratch), python), Path(scratch), timeout_s)
        except subprocess.TimeoutExpired:
            return f"took more than {timeout_s:g} s"
    if done.returncode != 0:
        return f"ended with status {done.returncode}: {_last_line(done.stderr)}"
    try:
        num_options = len(job.questions[0].option_ids)
        return parse_answer(done.stdout, num_questions=len(job.questions), num_options=num_options)
    except ValueError as error:
        return f"gave no usable answer: {error}"


def _run(command: Sequence[str], scratch: Path, timeout_s: float | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=scratch,
        env=os.environ | {"PYTHONPATH": _import_path(scratch)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _command(name: str, job: PeerJob, scratch: Path, python: Path | None) -> list[str]:
    module, *flags = COMMANDS[name]
    save_questions(scratch / "questions.npz", job.questions)
    # absolute() and not resolve(): a virtual environment's interpreter is a link, and is found by its name.
    interpreter = sys.executable if python is None else str(python.absolute())
    return [
        *(interpreter, "-m", f"{PACKAGE}.{module}", *flags),
        *("--checkpoint", str(job.checkpoint.resolve())),
        *("--questions", str((scratch / "questions.npz").resolve())),
        *("--work-folder", str(scratch.resolve())),
        *("--threads", str(job.num_threads)),
    ]


def _import_path(scratch: Path) -> str:
    """PYTHONPATH that offers `strata` and nothing else of this interpreter's packages."""
    scripts = Path(__file__).resolve().parents[2]
    package = scratch.resolve() / "import_path" / "strata"
    package.mkdir(parents=True)
    (package / "scripts").symlink_to(scripts, target_is_directory=True)
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(package.parent), *([inherited] if inherited else [])])


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][-SHOWN_CHARACTERS:] if lines else "it printed nothing"
