"""Compiles the CUDA kernels at run time with NVRTC, which torch's CUDA builds bring; users have no compiler.

Through ctypes: torch.cuda._compile_kernel wants a CUDA toolkit's folder and setuptools, and is private.
Source: NVRTC's documentation (docs.nvidia.com/cuda/nvrtc).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch

from strata.kernels.int8_linear.cuda.source import ELEMENTS, kernel_source


class KernelsUnavailableError(Exception):
    """Why the CUDA kernels cannot be had here, in one line."""


@dataclass(frozen=True, kw_only=True)
class CompiledKernels:
    """`int8_gemm` and `quantize_rows` as a cubin, and what the compiler said."""

    cubin: bytes
    log: str


def compile_kernels(capability: tuple[int, int], dtype: torch.dtype, *options: str) -> CompiledKernels:
    """The kernels for a card; takes a second or two.

    Args:
        capability: of the card.
        dtype: of activations.
        options: more of NVRTC's.

    Raises:
        KernelsUnavailableError: there is no NVRTC, or it does not know the card.
    """
    architecture = f"--gpu-architecture=sm_{capability[0]}{capability[1]}"
    return _compile([architecture, "--std=c++17", f"-DELEMENT_{ELEMENTS[dtype]}", *options])


def _compile(options: Sequence[str]) -> CompiledKernels:
    nvrtc, program, source = load_nvrtc(), ctypes.c_void_p(), kernel_source().encode()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"int8.cu", 0, None, None))
    try:
        flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), flags)
        log = _text(nvrtc, program, "ProgramLog").decode(errors="replace").rstrip("\0")
        if status:
            lines = log.splitlines()
            told = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
            raise KernelsUnavailableError(f"NVRTC with {' '.join(options)}: {told}")
        return CompiledKernels(cubin=_text(nvrtc, program, "CUBIN"), log=log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@lru_cache(maxsize=1)
def load_nvrtc() -> ctypes.CDLL:
    """The library: of torch's CUDA version where there are several.

    Raises:
        KernelsUnavailableError: there is none.
    """
    for name in _candidates():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise KernelsUnavailableError("libnvrtc, which torch's CUDA builds bring, is not there")


def _candidates() -> Iterator[str]:
    """Files in torch's and NVIDIA's packages, then names that the system may know."""
    major = (torch.version.cuda or "").split(".")[0]
    names = [f"libnvrtc.so.{number}" for number in sorted(("12", "13"), key=lambda number: number != major)]
    spec = find_spec("nvidia")
    packages = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    folders = [Path(torch.__file__).parent / "lib", *(lib for root in packages for lib in root.glob("*/lib"))]
    if "CUDA_HOME" in os.environ:
        folders.append(Path(os.environ["CUDA_HOME"]) / "lib64")
    for name in names:
        yield from (str(folder / name) for folder in folders if (folder / name).is_file())
        yield name


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """What nvrtcGet... gives, after its size."""
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, text))
    return text.raw


def _check(nvrtc: ctypes.CDLL, status: int) -> None:
    if status:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise KernelsUnavailableError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status).decode()}")
