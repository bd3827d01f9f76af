"""`strata train --plan`: what a step needs of memory. Reads headers and one batch of questions only."""

from __future__ import annotations

from strata.training.base_model import open_base
from strata.training.config import TrainConfig
from strata.training.data.batch_order import BatchOrder
from strata.training.data.training_set import TrainingSet
from strata.training.readers.decoder_reader import DecoderReader
from strata.training.readers.devices import choose_device, choose_dtype
from strata.training.readers.memory_plan import MemoryPlan, plan_memory, shape_of
from strata.training.readers.packed_batch import count_tokens


def plan_run(config: TrainConfig, data: TrainingSet) -> MemoryPlan:
    """The plan of a run's first step, whose questions stand for all.

    Raises:
        InputError: no such checkpoint or device, or too small a --memory-gib.
    """
    device = choose_device(config)
    checkpoint = open_base(config)
    dtype = choose_dtype(config, checkpoint.stored_dtype, device)
    shape = shape_of(config, checkpoint, dtype)
    reader = DecoderReader(config, checkpoint, shape.skeleton, device)
    order = BatchOrder(num_examples=len(data.train), batch_size=config.batch_questions, seed=config.seed)
    _, indices = order.batch(0)
    sizes = [count_tokens(example) for example in data.train.read(reader, indices, epoch=0)]
    micro_batch_tokens = max(max(sizes), min(reader.micro_batch_tokens, sum(sizes)))
    return plan_memory(
        config,
        shape,
        micro_batch_tokens=micro_batch_tokens,
        step_tokens=sum(sizes),
        on_cpu=device.type == "cpu",
    )
