"""What the steps of a training take of time, known before any weight is read. Pure arithmetic on a batch.

A decoder's forward pass costs what a sweep costs. On the way back every matrix product is done once more for
its input's gradient, and where the matrix learns, once for its own; the two products of attention become four
(source of the counts: FlashAttention-2, arXiv:2307.08691, section 4.1, where a fifth is a recomputation, done
here with the whole layer if at all). Layers that are not kept are computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from strata.engine.machine.rates import MachineRates
from strata.engine.progress import human_time
from strata.engine.results.human_units import human_bytes, human_flops
from strata.training.config import TrainConfig

LORA_FLOPS = 6
"""A token and trained weight: forward, gradient of the input, gradient of the weight."""


@dataclass(frozen=True, kw_only=True)
class BatchWork:
    """What one batch of questions costs.

    Attributes:
        questions: in it.
        tokens: of its prefix trees.
        gemm_flops: of the base model's matrices in a forward pass.
        attention_flops: of its attention.
        trained_weights: parameters that learn.
        layer_bytes: of all layers, as stored.
    """

    questions: int
    tokens: int
    gemm_flops: float
    attention_flops: float
    trained_weights: int
    layer_bytes: int


@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """What a run takes of time.

    Attributes:
        batch: the first step's, which stands for all.
        num_steps: optimizer steps.
        num_evaluations: of the validation set, that before the first step included.
        num_valid: questions of an evaluation.
        step_flops: of a step, the way back included.
        step_compute_s: of a step.
        step_read_s: streaming the layers forward and back; 0 where they stay.
        evaluation_s: of one evaluation.
        rates: what the seconds are made with.
    """

    batch: BatchWork
    num_steps: int
    num_evaluations: int
    num_valid: int
    step_flops: float
    step_compute_s: float
    step_read_s: float
    evaluation_s: float
    rates: MachineRates

    @property
    def step_s(self) -> float:
        """Seconds of a step; reading goes on beside computing."""
        return max(self.step_compute_s, self.step_read_s)

    @property
    def total_s(self) -> float:
        """Seconds of all steps and evaluations."""
        return self.num_steps * self.step_s + self.num_evaluations * self.evaluation_s

    def describe(self) -> list[str]:
        """A line for each part."""
        tokens = self.batch.tokens
        step = human_time(self.step_s)
        if self.step_read_s:
            step += f" (computing {human_time(self.step_compute_s)}, reading {human_time(self.step_read_s)})"
        disk = f", {human_bytes(self.rates.disk_bytes_per_s)}/s of disk" if self.step_read_s else ""
        parts = {
            "steps": f"{self.num_steps:,} of {self.batch.questions:,} question(s)",
            "tokens a step": f"{tokens:,}, what options share counted once",
            "tokens in all": f"about {tokens * self.num_steps:,}",
            "work a step": human_flops(self.step_flops),
            "computed at": f"{human_flops(self.rates.gemm_flop_per_s)}/s{disk} ({self.rates.rates_from})",
            "time a step": step,
        }
        if self.num_evaluations:
            each = human_time(self.evaluation_s)
            parts["evaluations"] = f"{self.num_evaluations} of {self.num_valid:,} question(s), {each} each"
        parts["time in all"] = f"about {human_time(self.total_s)}, opening and small models' overhead aside"
        return [f"{name:40} {text}" for name, text in parts.items()]


def plan_work(
    config: TrainConfig, batch: BatchWork, rates: MachineRates, *, num_steps: int, num_valid: int
) -> WorkPlan:
    """The time of a run, from one batch and the machine's rates.

    Args:
        config: the run's settings.
        batch: what stands for all batches.
        rates: of the device.
        num_steps: optimizer steps.
        num_valid: questions of an evaluation; 0 for none.
    """
    recomputed = 1 if config.streamed or config.gradient_checkpointing else 0
    passes = 2 + (1 if config.full else 0) + recomputed
    gemm = passes * batch.gemm_flops
    if not config.full:
        gemm += LORA_FLOPS * batch.trained_weights * batch.tokens
    attention = (3 + recomputed) * batch.attention_flops
    layer = rates.layer_rates

    def seconds(gemm_flops: float, attention_flops: float) -> float:
        return gemm_flops / layer.linear_flop_per_s + attention_flops / layer.attention_flop_per_s

    read_s = batch.layer_bytes / rates.disk_bytes_per_s if config.streamed else 0.0
    forward_s = seconds(batch.gemm_flops, batch.attention_flops)
    share = num_valid / batch.questions
    return WorkPlan(
        batch=batch,
        num_steps=num_steps,
        num_evaluations=count_evaluations(config, num_steps) if num_valid else 0,
        num_valid=num_valid,
        step_flops=gemm + attention,
        step_compute_s=seconds(gemm, attention),
        step_read_s=2 * read_s,
        evaluation_s=max(share * forward_s, read_s),
        rates=rates,
    )


def count_evaluations(config: TrainConfig, num_steps: int) -> int:
    """Before the first step, every --eval-every steps, and at the end."""
    every = config.eval_every
    while_training = num_steps // every if every else 0
    at_end = 0 if every and num_steps % every == 0 else 1
    return int(config.eval_first) + while_training + at_end
