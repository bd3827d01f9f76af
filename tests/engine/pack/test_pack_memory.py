"""The memory that `strata pack` takes: that of its largest matrix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf

MEASURED = """
import sys
from pathlib import Path
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.pack.pack import pack_checkpoint
from strata.engine.pack.config import PackConfig
from strata.engine.pack.layout import plan_pack
from strata.engine.results.peak_memory import PeakMemory
config = PackConfig(model=Path(sys.argv[1]), out=Path(sys.argv[2]), format=sys.argv[3], verify=True)
# Imports whatever planning needs.
plan_pack(open_checkpoint(config.model), config)
with PeakMemory(interval_s=0.001) as memory:
    pack_checkpoint(config)
print(memory.peak_bytes - memory.baseline_bytes)
"""

LARGEST_BYTES = 2 * 2048 * 5632


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """300 MB of bfloat16 in matrices of up to 23 MB."""
    config = hf.LlamaConfig(
        vocab_size=1000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=3,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder = tmp_path_factory.mktemp("large")
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").stat().st_size > 270e6
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "matrices"), [("bf16", 1), ("fp32", 3), ("int8", 1.5), ("nf4", 1.5)])
def test_memory_is_that_of_one_matrix(kind, matrices, large, tmp_path):
    command = [sys.executable, "-c", MEASURED, str(large), str(tmp_path / "out"), kind]
    # Otherwise glibc keeps up to 64 MiB of what was freed for itself.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280, env=environment)
    # The matrix as stored and as written, of 21 matrices in the model, and a block of each encoding thread.
    assert int(done.stdout) < matrices * LARGEST_BYTES + 20e6 * (1 + min(os.cpu_count() or 1, 8))
