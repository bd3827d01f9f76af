"""Compiles what a launch would launch, for cards that are not there, and reads what the assembler says of it.

A launch runs as it is, on tensors of the meta device, but its kernels are recorders: they take the
arguments, derive from them the types and constants that Triton would specialise on, and compile for a target
with Triton's own ptxas.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (75, 80, 90)
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float8_e4m3fn: "fp8e4nv",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A kernel for a card: registers and bytes of stack a thread, and its PTX."""

    name: str
    registers: int
    stack_bytes: int
    ptx: str


class Recorder:
    """Stands for a kernel: `recorder[grid](...)` compiles it."""

    def __init__(self, kernel: Any, capability: int, found: list[Compiled]) -> None:
        self.kernel, self.capability, self.found = kernel, capability, found

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert len(grid) <= 3
        assert all(size > 0 for size in grid)
        assert all(size <= 65535 for size in grid[1:]), grid
        return self.launch

    def launch(self, *args: Any, **settings: Any) -> None:
        options = {name: settings.pop(name) for name in OPTIONS if name in settings}
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | settings
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, given[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[name], constants[(place,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = "*" + TYPES[value.dtype]
                attributes[(place,)] = [["tt.divisibility", 16]]
            elif isinstance(value, int):
                signature[name] = "i32"
                if value == 1 and not parameter.do_not_specialize:
                    signature[name], constants[(place,)] = "constexpr", 1
                elif value % 16 == 0 and not parameter.do_not_specialize:
                    attributes[(place,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32"
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)
        done = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
        self.found.append(_examine(self.kernel.fn.__name__, done))


def compile_launch(
    launch: Callable[[], object], module: ModuleType, capability: int, monkeypatch: Any
) -> Compiled:
    """What the one kernel of a module that a launch launches is for a card."""
    found: list[Compiled] = []
    for name, kernel in list(vars(module).items()):
        if name.endswith("_kernel"):
            monkeypatch.setattr(module, name, Recorder(kernel, capability, found))
    launch()
    (compiled,) = found
    return compiled


def _examine(name: str, done: Any) -> Compiled:
    """Registers and stack as cuobjdump, which comes with Triton, reads them from the binary."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(done.asm["cubin"])
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = (int(_field(told, field)) for field in ("REG", "STACK", "LOCAL"))
    return Compiled(name=name, registers=registers, stack_bytes=max(stack, local), ptx=done.asm["ptx"])


def _field(told: str, name: str) -> str:
    match = re.search(rf"\b{name}:(\d+)", told)
    assert match is not None, told
    return match[1]
