"""`strata train --plan`: what a step needs of memory, and what a run takes of time.

Reads headers and one batch of questions only, and measures this machine for a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from strata.engine.machine.profile import measure_rates
from strata.engine.plan.costs import sweep_flops
from strata.training.base_model import open_base
from strata.training.config import TrainConfig
from strata.training.data.batch_order import BatchOrder
from strata.training.data.training_set import TrainingSet
from strata.training.readers.devices import choose_device, choose_dtype
from strata.training.readers.memory_plan import (
    MemoryPlan,
    TrainedShape,
    count_trained,
    plan_memory,
    shape_of,
)
from strata.training.readers.packed_batch import count_tokens, pack_examples
from strata.training.readers.resident_reader import ResidentReader
from strata.training.types import Example
from strata.training.work_plan import BatchWork, WorkPlan, plan_work


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Memory and time of a run, as its first step foretells them."""

    memory: MemoryPlan
    work: WorkPlan

    def describe(self) -> list[str]:
        """A line for each part."""
        return [*self.memory.describe(), *self.work.describe()]


def plan_run(config: TrainConfig, data: TrainingSet) -> RunPlan:
    """The plan of a run's first step, whose questions stand for all.

    Raises:
        InputError: no such checkpoint or device, or too small a --memory-gib.
    """
    device = choose_device(config)
    checkpoint = open_base(config)
    dtype = choose_dtype(config, checkpoint.stored_dtype, device)
    shape = shape_of(config, checkpoint, dtype)
    reader = ResidentReader(config, checkpoint, shape.skeleton, device)
    order = BatchOrder(num_examples=len(data.train), batch_size=config.batch_questions, seed=config.seed)
    _, indices = order.batch(0)
    examples = data.train.read(reader, indices, epoch=0)
    sizes = [count_tokens(example) for example in examples]
    micro_batch_tokens = max(max(sizes), min(reader.micro_batch_tokens, sum(sizes)))
    num_valid = 0 if data.valid is None else min(len(data.valid), config.eval_limit or len(data.valid))
    file = checkpoint.require("embed_tokens.weight").parts[0][0].file
    name = "cpu" if device.type == "cpu" else str(device)
    return RunPlan(
        memory=plan_memory(
            config,
            shape,
            micro_batch_tokens=micro_batch_tokens,
            step_tokens=sum(sizes),
            on_cpu=device.type == "cpu",
        ),
        work=plan_work(
            config,
            batch_work(shape, examples),
            measure_rates((name,), dtype, checkpoint.config.hidden_size, file),
            num_steps=order.count_steps(epochs=config.epochs, max_steps=config.max_steps),
            num_valid=num_valid,
        ),
    )


def batch_work(shape: TrainedShape, examples: Sequence[Example]) -> BatchWork:
    """What a forward pass over a batch costs, a tree a question.

    Args:
        shape: its costs, and what is trained of it.
        examples: the batch.
    """
    tokens, gemm_flops, attention_flops = 0, 0.0, 0.0
    for example in examples:
        packed = pack_examples([example], torch.device("cpu"))
        gemm, attention = sweep_flops(shape.costs, packed.tree.position_ids, packed.batch.scored_rows)
        tokens += packed.num_tokens
        gemm_flops += gemm
        attention_flops += attention
    return BatchWork(
        questions=len(examples),
        tokens=tokens,
        gemm_flops=gemm_flops,
        attention_flops=attention_flops,
        trained_weights=count_trained(shape.skeleton),
        layer_bytes=sum(shape.costs.stored_bytes),
    )
