"""The CUDA kernels of int8 linears as NVRTC makes them, for cards that are not here: none is needed for it.

Registers and spills are the compiler's own figures, instructions those of the disassembler of Triton.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from strata.kernels.int8_linear.cuda.nvrtc import (
    CompiledKernels,
    KernelsUnavailableError,
    compile_kernels,
    load_nvrtc,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (9, 0))
NUM_REGISTERS = 65536
"""Of an SM."""
MOST_REGISTERS = NUM_REGISTERS // (2 * 256)
"""Of a thread, for two blocks to run on an SM at once."""
MULTIPLY = {
    (7, 5): ("IMMA.8816.S8.S8", 128),
    (8, 0): ("IMMA.16832.S8.S8", 32),
    (9, 0): ("IMMA.16832.S8.S8", 32),
}
"""What multiplies on tensor cores, and how often a step of 64 inputs needs it: 4 x 4 of 16 x 8, twice."""


def compiled(capability: tuple[int, int], dtype: torch.dtype) -> CompiledKernels:
    try:
        load_nvrtc()
    except KernelsUnavailableError as reason:
        pytest.skip(f"{reason}; nvidia-cuda-nvrtc-cu12 of the dev extra has it")
    return compile_kernels(capability, dtype, "--ptxas-options=-v")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_registers(capability: tuple[int, int], dtype: torch.dtype) -> None:
    found = compiled(capability, dtype)
    assert found.cubin.startswith(b"\x7fELF")
    for name in ("int8_gemm", "quantize_rows"):
        told = found.log.split(f"entry function '{name}'")[1].split("Compile time")[0]
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in told
        (registers,) = re.findall(r"Used (\d+) registers", told)
        assert int(registers) <= MOST_REGISTERS


def test_a_card_that_is_too_old() -> None:
    compiled((7, 5), torch.float16)
    with pytest.raises(KernelsUnavailableError, match=r"sm_61 .*error"):
        compile_kernels((6, 1), torch.float16)


def disassembler() -> str:
    spec = find_spec("triton")
    bundled = (
        [Path(root, "backends/nvidia/bin/nvdisasm") for root in spec.submodule_search_locations or ()]
        if spec
        else []
    )
    found = next((str(path) for path in bundled if path.is_file()), None) or shutil.which("nvdisasm")
    if found is None:
        pytest.skip("no nvdisasm, which Triton's package brings")
    return found


@pytest.mark.parametrize("capability", MULTIPLY, ids=str)
def test_tensor_cores_multiply(capability: tuple[int, int], tmp_path: Path) -> None:
    cubin = tmp_path / "kernels.cubin"
    cubin.write_bytes(compiled(capability, torch.float16).cubin)
    command = [disassembler(), "-c", str(cubin)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    instruction, times = MULTIPLY[capability]
    assert len(re.findall(rf"\b{re.escape(instruction)}\b", code)) == times
    assert len(re.findall(r"\bLDSM\.16\.M88\.4\b", code)) == 12
    assert bool(re.search(r"\bLDGSTS\b", code)) == (capability >= (8, 0))
    assert not re.search(r"\b(IDP|LDL|STL)\b", code)
