"""AirLLM on a checkpoint that it first splits into a file a layer; knows strata's questions only.

AirLLM hangs hooks on transformers' modules that load a layer before it runs, read the next one ahead, and
drop each at once. Of the ways its users have, all options of a question as one batch is the fastest: one pass
over the layers instead of one an option. A KV cache of the prefix can be had too, by hand (`share_prefix`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from strata.scripts.bench.peers.batched_forward import answer_command_line, score_questions
from strata.scripts.bench.peers.exchange import PeerJob, find_missing
from strata.scripts.bench.workloads.baselines import BaselineRun

if TYPE_CHECKING:
    from airllm import AirLLMBaseModel

MODULES = ("airllm", "accelerate", "transformers", "torch")


def missing_reason() -> str | None:
    """Why AirLLM cannot run in this interpreter, or None."""
    return find_missing(MODULES)


def measure_airllm(job: PeerJob, *, share_prefix: bool = False) -> BaselineRun:
    """Times AirLLM on the CPU in the checkpoint's dtype; splitting the checkpoint is not timed.

    Takes as much disk again as the checkpoint has, given back at the end.

    Args:
        job: What to score, and where; AirLLM's layer files go to its work folder.
        share_prefix: Compute the prefix once into a KV cache, at the price of reading every layer twice.

    Raises:
        ValueError: The options of a question differ in length.
    """
    import torch

    torch.set_num_threads(job.num_threads)
    with tempfile.TemporaryDirectory(dir=job.work_folder, prefix="airllm-") as layers:
        model = _open_model(job.checkpoint, Path(layers))
        return score_questions(model, job.questions, share_prefix=share_prefix)


def _open_model(checkpoint: Path, layers: Path) -> AirLLMBaseModel:
    from airllm import AirLLMBaseModel

    class TokenIdModel(AirLLMBaseModel):
        """AirLLM without a tokenizer, which a random checkpoint does not have."""

        def get_tokenizer(self, hf_token: str | None = None) -> None:
            return None

    return TokenIdModel(checkpoint, device="cpu", layer_shards_saving_path=layers)


def main() -> int:
    """Answers one request on the command line."""
    packages = ("airllm", "transformers", "torch")
    return answer_command_line("airllm", measure_airllm, missing=missing_reason(), packages=packages)


if __name__ == "__main__":
    raise SystemExit(main())
