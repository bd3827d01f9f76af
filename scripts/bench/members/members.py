"""`strata bench members`: several adapters in one sweep over streamed layers, beside the best it can take.

`adapters_over_ideal` is the time of N adapters in one sweep, every layer streamed once, over the longer of:
N sweeps with one adapter, merged, and all layers in memory; and reading the base. The bytes that the shared
sweep reads are those of the base, once. All kinds of run take turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.plan.shapes import SHAPES, ModelShape
from strata.engine.scorer import Scorer
from strata.engine.types import Prompt
from strata.scripts.bench.configs import QuestionSize
from strata.scripts.bench.members.config import MembersBenchConfig
from strata.scripts.bench.record import (
    RESULTS,
    append_result,
    asked_settings,
    print_environment,
    print_table,
)
from strata.scripts.bench.timing import time_in_turns
from strata.scripts.bench.workloads.random_checkpoint import make_random_checkpoint
from strata.scripts.bench.workloads.synthetic_job import make_job

MODULES = ("self_attn.q_proj", "self_attn.v_proj")


def run_members_bench(config: MembersBenchConfig) -> int:
    """Times, prints and appends the result."""
    print_environment()
    figures = time_adapters(config)
    print_table([figures])
    append_result("members", figures | {"config": asked_settings(config)}, RESULTS)
    return 0


def time_adapters(config: MembersBenchConfig) -> dict[str, Any]:
    """Seconds of each kind of run, and the ratio."""
    shape = SHAPES[config.shape]
    base = make_random_checkpoint(shape, config.folder / config.shape)
    folders = [make_adapter(shape, config, number) for number in range(config.num_adapters)]
    shared = [Member(model=base, adapter=folder, head="yes-no") for folder in folders]
    size = QuestionSize(
        prefix_tokens=config.prefix_tokens,
        option_tokens=config.option_tokens,
        num_options=config.num_options,
    )
    prompts = make_job(shape, config.num_questions, size).prompts
    read_s: list[float] = []
    with (
        _open(config, shared, resident=0) as streamed,
        _open(config, shared[:1], resident=shape.num_layers) as resident,
    ):
        runs = {
            "shared": lambda: read_s.append(_score(streamed, prompts)),
            "alone": lambda: _score(resident, prompts),
        }
        for run in runs.values():
            run()
        job = streamed.prepare(prompts)
        found = time_in_turns(runs, config.rounds, str(job.machine.devices[0]))
        bytes_read = job.describe()["bytes_read"]
    seconds = {name: median(taken) for name, taken in found.items()}
    ideal_s = max(median(read_s[1:]), config.num_adapters * seconds["alone"])
    return {
        "shared_s": seconds["shared"],
        "alone_s": seconds["alone"],
        "read_s": median(read_s[1:]),
        "bytes_read": bytes_read,
        "adapters_over_ideal": seconds["shared"] / ideal_s,
    }


def make_adapter(shape: ModelShape, config: MembersBenchConfig, number: int) -> Path:
    """A random LoRA as PEFT saves one."""
    folder = config.folder / f"{config.shape}-lora-{config.rank}-{number}"
    generator = torch.Generator().manual_seed(number)
    widths = {
        "self_attn.q_proj": shape.num_heads * shape.head_dim,
        "self_attn.v_proj": shape.num_kv_heads * shape.head_dim,
    }
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(shape.num_layers):
        for module in MODULES:
            name = f"base_model.model.model.layers.{layer}.{module}"
            a = torch.randn(config.rank, shape.hidden_size, generator=generator) / shape.hidden_size**0.5
            b = 0.1 * torch.randn(widths[module], config.rank, generator=generator)
            tensors |= {f"{name}.lora_A.weight": a.bfloat16(), f"{name}.lora_B.weight": b.bfloat16()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = [module.rsplit(".", 1)[1] for module in MODULES]
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": config.rank, "lora_alpha": config.rank}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": targets}))
    return folder


def _open(config: MembersBenchConfig, members: list[Member], *, resident: int) -> Scorer:
    overrides = PlanOverrides(num_groups=1, resident_layers=resident)
    session = Session(folder=config.folder, overrides=overrides)
    return Scorer.open(members, MachineSettings(devices=config.device), session=session)


def _score(scorer: Scorer, prompts: Sequence[Prompt]) -> float:
    """Scores prompts; returns the seconds that reading layers took beside it."""
    job = scorer.prepare(prompts)
    for _ in job.groups(Deadline()):
        pass
    stream = job.measure().weight_stream
    return 0.0 if stream is None else stream.weights_read_s
