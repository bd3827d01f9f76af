"""What `--model_args` of lm-evaluation-harness may say of strata's model. Loads neither it nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from strata.engine.json_files import Schema, check_schema
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.types import InputError

WHERE = "--model_args"
HARNESS_DEFAULTS = (None, "auto", "cuda", "cuda:0")
"""What `device` says where the user has said nothing: its `hf` model then takes the CPU without CUDA, too."""


class LMArguments(Schema):
    """The arguments of `--model strata`, by the names that the harness' `hf` model has for them.

    Attributes:
        pretrained: checkpoint folder, or a GGUF file.
        gguf_file: name of a GGUF file in the folder `pretrained`.
        peft: folder of a LoRA adapter.
        dtype: what is computed in; `auto` is the checkpoint's own where the machine is fast in it.
        device: cpu, or a CUDA device; cuda and cuda:0, the harness' default, stand for the best there is: all
            CUDA devices, else the CPU.
        devices: exactly these, as a list or joined by a plus sign, in place of `device`.
        max_length: longest input in tokens; the model's window by default.
        add_bos_token: whether texts begin with BOS; as the tokenizer does by itself by default.
        prefix_token_id: what an empty context is replaced by; BOS, else EOS, by default.
        enable_thinking: told to the chat template; only false means something here.
        chat_template_args: further variables of the chat template.
        memory_gib: as `--memory-gib` of `strata score`; the following, too.
        host_memory_gib: budget in host RAM.
        cache_dir: folder that keeps what is read from a slow disk.
        verify: check tensors against their checksums.
        batch_size: has no effect: micro-batches are planned.
        max_batch_size: has none, either.
        revision: only `main`: models are local folders.
        trust_remote_code: only false.
    """

    model_config = ConfigDict(extra="forbid")

    pretrained: str
    gguf_file: str | None = None
    peft: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    device: str | None = None
    devices: str | list[str] | None = None
    max_length: int | None = Field(default=None, ge=1)
    add_bos_token: bool | None = None
    prefix_token_id: int | None = Field(default=None, ge=0)
    enable_thinking: bool | None = None
    chat_template_args: dict[str, Any] = Field(default_factory=dict)
    memory_gib: float | None = Field(default=None, gt=0)
    host_memory_gib: float | None = Field(default=None, gt=0)
    cache_dir: str | None = None
    verify: bool = False
    batch_size: int | str | None = None
    max_batch_size: int | None = None
    revision: Literal["main"] | None = None
    trust_remote_code: bool | None = None

    @field_validator("trust_remote_code", "enable_thinking")
    @classmethod
    def _only_false(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("expected false: no code of a model's folder is run, and nothing is generated")
        return value

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> LMArguments:
        """The arguments, checked; paths and dtypes may be objects of their libraries.

        Raises:
            InputError: one that is unknown, or not what is expected, in one line.
        """
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        if "dtype" in plain:
            plain["dtype"] = str(plain["dtype"]).removeprefix("torch.")
        return check_schema(cls, plain, WHERE)

    @property
    def model_path(self) -> Path:
        """The checkpoint's folder or file.

        Raises:
            InputError: it is not there; models are not downloaded.
        """
        path = Path(self.pretrained) if self.gguf_file is None else Path(self.pretrained) / self.gguf_file
        if not path.exists():
            raise InputError(f"{WHERE}: pretrained={path}: expected a folder or a GGUF file on this machine")
        return path

    @property
    def ignored_batch_size(self) -> str:
        """What the user asked for and does not get; empty for the harness' own defaults."""
        return "" if self.batch_size in (None, 1, "1", "auto") else str(self.batch_size)

    def member(self) -> Member:
        """The model, and its adapter."""
        adapter = None if self.peft is None else Path(self.peft)
        return Member(model=self.model_path, adapter=adapter, head="loglik")

    def machine(self) -> MachineSettings:
        """What of the machine it may use."""
        return MachineSettings(
            devices=self._devices(),
            dtype=self.dtype,
            memory_gib=self.memory_gib,
            host_memory_gib=self.host_memory_gib,
            verify=self.verify,
            cache_dir=None if self.cache_dir is None else Path(self.cache_dir),
        )

    def _devices(self) -> str:
        if isinstance(self.devices, list):
            return ",".join(self.devices)
        if self.devices is not None:
            return self.devices.replace("+", ",")
        return "auto" if self.device in HARNESS_DEFAULTS else self.device or "auto"
