"""The CUDA kernels of int8 linears, run on the CPU: compiled with g++ over emulated instructions.

What is run is kernels.cu as it is; intrinsics.cuh is replaced. Knows no expected results.
Legend: T tokens, N outputs, K inputs, D width of a row.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from strata.kernels.int8_linear.cuda.driver import Argument
from strata.kernels.int8_linear.cuda.source import ELEMENTS, GEMM_TILE, NUM_THREADS, SOURCE_FOLDER

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")


class EmulatedKernels:
    """A card's kernels for activations of one dtype."""

    def __init__(self, folder: Path, capability: int, dtype: torch.dtype, source: str | None = None) -> None:
        """Compiles them.

        Args:
            folder: for what is compiled.
            capability: 75 or 80.
            dtype: of activations.
            source: in place of kernels.cu.
        """
        assert COMPILER is not None
        self._dtype = dtype
        text = source or (SOURCE_FOLDER / "kernels.cu").read_text(encoding="ascii")
        parts = [(HERE / "emulated_intrinsics.h").read_text(encoding="ascii"), text]
        parts.append((HERE / "launches.h").read_text(encoding="ascii"))
        file = folder / "emulated.cpp"
        file.write_text("\n".join(parts), encoding="ascii")
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-fno-strict-aliasing", "-w"]
        defines = [f"-DCOMPUTES_AS={capability}0", f"-DELEMENT_{ELEMENTS[dtype]}"]
        library = folder / "emulated.so"
        subprocess.run([COMPILER, *flags, *defines, str(file), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))

    def launch(self, name: str, num_blocks: int, num_threads: int, arguments: Sequence[Argument]) -> None:
        """As `LoadedKernels.launch`."""
        assert num_threads == NUM_THREADS
        pointers = [_pointer(argument) for argument in arguments if not isinstance(argument, int | float)]
        if name == "int8_gemm":
            *_, addend, output, num_tokens, num_outputs, num_inputs = arguments
            assert addend is None or addend is output
            assert num_blocks == -(-num_tokens // GEMM_TILE) * -(-num_outputs // GEMM_TILE)
            sizes = (num_tokens, num_outputs, num_inputs)
            operands = (*pointers[:5], pointers[6])
            self._library.run_int8_gemm(*operands, int(addend is not None), *sizes, 0)
        else:
            width, epsilon = arguments[-2:]
            self._library.run_quantize_rows(*pointers, num_blocks, width, ctypes.c_float(epsilon), 0)

    @property
    def bank_conflicts(self) -> int:
        """Matrices, so far, whose eight rows did not lie in different banks of shared memory."""
        return int(self._library.count_bank_conflicts())

    def int8_gemm(
        self,
        codes_TK: torch.Tensor,
        scale_T: torch.Tensor,
        codes_NK: torch.Tensor,
        scale_N: torch.Tensor,
        bias_N: torch.Tensor | None = None,
        addend_TN: torch.Tensor | None = None,
        seed: int = 0,
    ) -> torch.Tensor:
        """The output [T, N] of a launch; an addend lies where the output comes."""
        sizes = (len(codes_TK), len(codes_NK), codes_TK.shape[1])
        poison = torch.full(sizes[:2], float("nan"), dtype=self._dtype)
        output = poison if addend_TN is None else addend_TN.clone()
        tensors = [_pointer(tensor) for tensor in (codes_TK, scale_T, codes_NK, scale_N, bias_N, output)]
        self._library.run_int8_gemm(*tensors, int(addend_TN is not None), *sizes, seed)
        return output

    def quantize_rows(
        self,
        x_TD: torch.Tensor,
        *,
        residual_TD: torch.Tensor | None = None,
        weight_D: torch.Tensor | None = None,
        is_skipped_D: torch.Tensor | None = None,
        epsilon: float = 1e-6,
        seed: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes [T, D], scale [T], what was rounded [T, D], and the sum with the residual [T, D]."""
        codes = torch.full(x_TD.shape, 99, dtype=torch.int8)
        scale = torch.full((len(x_TD),), float("nan"))
        normed, total = torch.full_like(x_TD, float("nan")), torch.full_like(x_TD, float("nan"))
        inputs = [_pointer(tensor) for tensor in (x_TD, residual_TD, weight_D, is_skipped_D)]
        results = [_pointer(tensor) for tensor in (total, normed, codes, scale)]
        self._library.run_quantize_rows(
            *inputs, *results, *x_TD.shape, ctypes.c_float(epsilon), ctypes.c_uint(seed)
        )
        return codes, scale, normed, total


def _pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
