"""transformers with accelerate's disk offload; knows strata's questions only.

Accelerate hangs hooks on the modules that read their weights before they run and drop them afterwards, with
nothing read ahead. All options of a question go as one batch, one pass over the layers instead of one an
option. A KV cache of the prefix can be had too, by hand (`share_prefix`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from strata.scripts.bench.peers.batched_forward import answer_command_line, score_questions
from strata.scripts.bench.peers.exchange import PeerJob, find_missing
from strata.scripts.bench.workloads.baselines import BaselineRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODULES = ("accelerate", "transformers", "torch")


def missing_reason() -> str | None:
    """Why disk offload cannot run in this interpreter, or None."""
    return find_missing(MODULES)


def measure_accelerate_disk(job: PeerJob, *, share_prefix: bool = False) -> BaselineRun:
    """Times a model all of whose weights are on disk, on the CPU in the checkpoint's dtype.

    Args:
        job: What to score, and where; what accelerate offloads goes to its work folder (nothing, when it
            reads safetensors).
        share_prefix: Compute the prefix once into a KV cache, at the price of reading every layer twice.

    Raises:
        ValueError: The options of a question differ in length.
    """
    import torch

    torch.set_num_threads(job.num_threads)
    with tempfile.TemporaryDirectory(dir=job.work_folder, prefix="accelerate-") as offload:
        model = _open_model(job.checkpoint, Path(offload))
        return score_questions(model, job.questions, share_prefix=share_prefix)


def _open_model(checkpoint: Path, offload: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        checkpoint,
        trust_remote_code=False,
        dtype="auto",
        attn_implementation="sdpa",
        device_map={"": "disk"},
        offload_folder=str(offload),
    ).eval()


def main() -> int:
    """Answers one request on the command line."""
    packages = ("accelerate", "transformers", "torch")
    return answer_command_line(
        "accelerate_disk", measure_accelerate_disk, missing=missing_reason(), packages=packages
    )


if __name__ == "__main__":
    raise SystemExit(main())
