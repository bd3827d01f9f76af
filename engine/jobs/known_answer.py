"""The probe: a short prompt, through the sweep and through an independent computation, on the real weights.

Data flow: the first tokens [L] of a prompt -> the checkpoint cut to one layer -> planned and swept as any job
is (streamed, converted, on the device, in the compute dtype) -> readouts [L, D], logits of the next tokens
[L - 1] -> held against `dense_reference`, in float32 on the CPU. What lies between the bytes on disk and the
scores is met on the way: files, names, ties, formats, dtypes, adapter, attention, final norm, projection.
Reads the first layer twice; its seconds are recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from strata.engine.adapters.lora import Adapter
from strata.engine.jobs.job import KnownAnswer
from strata.engine.machine.machine import Machine
from strata.engine.model.dense_reference import first_layer_readouts, projection_rows
from strata.engine.model.open_model import Computing, OpenModel, open_model
from strata.engine.model.vocabulary import TargetTokens, target_logits, vocabulary_projection
from strata.engine.plan.overrides import GroupGoal, PlanOverrides
from strata.engine.plan.sweep_job import PlanRequest, plan_sweep_job
from strata.engine.sweep.sweep import run_sweep
from strata.engine.tree.targets import build_scored_tree
from strata.engine.types import Branch, InputError, Prompt, Question, Target
from strata.engine.weights.first_layers import keep_layers

MAX_TOKENS = 16

LARGEST_ERROR = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Root mean square of the difference over that of the expected values, by compute dtype."""

LARGEST_INT8_ERROR = 0.3


def check_known_answer(
    model: OpenModel, machine: Machine, adapters: Sequence[Adapter], prompt: Prompt, folder: Path
) -> KnownAnswer | None:
    """Computes the first layer of a prompt's beginning in two ways; None where that is not finite.

    What is not finite, the run itself tells, with the questions that it concerns.

    Args:
        model: as the job computes it.
        machine: that it runs on.
        adapters: the members'; the first is applied.
        prompt: whose first branch is taken.
        folder: for a hidden store on disk.

    Raises:
        InputError: the two differ by more than the compute dtype explains.
    """
    started = perf_counter()
    token_ids = prompt.branches[0].token_ids[:MAX_TOKENS]
    first = tuple(replace(adapter, layers=adapter.layers[:1]) for adapter in adapters[:1])
    cut = _one_layer(model, machine, first)
    try:
        swept = _sweep(cut, machine, token_ids, folder)
    except FloatingPointError:
        return None
    expected = first_layer_readouts(
        cut.checkpoint, token_ids, first[0] if first else None, normalizes=model.normalizes
    )
    logit_error = _logit_error(cut, swept, expected, token_ids)
    if logit_error is not None and math.isnan(logit_error):
        return None
    limit = LARGEST_INT8_ERROR if machine.linear == "int8" else LARGEST_ERROR[model.dtype]
    found = KnownAnswer(
        num_tokens=len(token_ids),
        seconds=perf_counter() - started,
        readout_error=_error(swept, expected),
        logit_error=logit_error,
    )
    _refuse(found, limit, model)
    return found


def _one_layer(model: OpenModel, machine: Machine, adapters: tuple[Adapter, ...]) -> OpenModel:
    computing = Computing(devices=machine.devices[:1], dtype=machine.dtype, int8=machine.linear == "int8")
    checkpoint = keep_layers(model.checkpoint, 1)
    cut = open_model(checkpoint, adapters, computing, model.reader)
    return replace(cut, normalizes=model.normalizes)


def _sweep(cut: OpenModel, machine: Machine, token_ids: np.ndarray, folder: Path) -> torch.Tensor:
    """Readouts [L, D] float32 of every token."""
    targets = tuple(Target(position=place, token_id=None) for place in range(len(token_ids)))
    branch = Branch(option=0, order=(), label=None, token_ids=token_ids, text="", targets=targets)
    question = Question(id="probe", prompt="", options=("",))
    tree = build_scored_tree([Prompt(question=question, branches=(branch,))])
    one_device = replace(machine, devices=machine.devices[:1], most_lanes=1)
    request = PlanRequest(machine=one_device, overrides=PlanOverrides(), group_goal=GroupGoal())
    job = plan_sweep_job(cut, tree, request, lambda targets: 0)
    (group,) = run_sweep(job, folder, lambda tokens: None)
    return next(iter(group.readouts.values())).float()


def _logit_error(
    cut: OpenModel, swept: torch.Tensor, expected: torch.Tensor, token_ids: np.ndarray
) -> float | None:
    if cut.checkpoint.output_embedding is None or len(token_ids) < 2:
        return None
    projection = vocabulary_projection(cut.checkpoint)
    targets = TargetTokens(rows=np.arange(len(token_ids) - 1), token_ids=token_ids[1:], normalized=False)
    found = target_logits(projection, swept, targets, cut.reader, cut.devices).values
    used, places = np.unique(token_ids[1:], return_inverse=True)
    rows = projection_rows(cut.checkpoint, used)[torch.from_numpy(places)]
    logits = (expected[:-1] * rows).sum(-1)
    if projection.bias is not None:
        logits = logits + projection.bias.read(cut.reader).float()[torch.from_numpy(token_ids[1:]).long()]
    return _error(torch.from_numpy(found), projection.final(logits).double())


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (found - expected).square().mean().sqrt()
    return float(difference / expected.square().mean().sqrt().clamp_min(1e-12))


def _refuse(found: KnownAnswer, limit: float, model: OpenModel) -> None:
    for what, error in (("readouts", found.readout_error), ("logits", found.logit_error)):
        if error is not None and not error <= limit:
            raise InputError(
                f"{model.checkpoint.path}: probed on {found.num_tokens} tokens, the {what} after the first "
                f"layer differ from an independent computation by {error:.2%}, at most {limit:.1%} expected "
                f"in {str(model.dtype).removeprefix('torch.')}; --no-probe goes on without this check"
            )
