"""What the norms of a decoder's layers put out on real questions, and which linear modules read it.

Data flow: questions -> prompts of head loglik -> one sweep in the model's own dtype, in which every norm and
linear module tells what it gives and takes -> NormMaxima a norm, InputMoments an input. A linear module reads
a norm when it is given the very tensor that the norm returned: what reshapes it first, such as experts, is
left alone. Peak memory is the sweep's and that of the moments.
Independent check: transformers' activations (tests/engine/smoothquant).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from strata.engine.jobs.job import Session
from strata.engine.jobs.open_decoder import open_decoder_members
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.model.decoder import Decoder
from strata.engine.pack.calibrated import (
    Calibration,
    InputMoments,
    NormMaxima,
    merge_maxima,
    merge_moments,
)
from strata.engine.plan.overrides import GroupGoal
from strata.engine.questions.question_file import read_questions
from strata.engine.smoothquant.config import CalibrationConfig
from strata.engine.smoothquant.input_moments import MomentsListener, block_inputs
from strata.engine.sweep.sweep import run_sweep
from strata.engine.weights.byte_sources import FileSource


@dataclass(kw_only=True, eq=False)
class LayerListener:
    """Hears the norms and linear modules of one layer of one worker."""

    path: str
    activations: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    linears: dict[str, list[str]] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    last_output: dict[str, weakref.ref[torch.Tensor]] = field(default_factory=dict)

    def listen(self, layer: nn.Module) -> None:
        """Begins; it ends with the module."""
        for path, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._linear_hook(path))
            elif is_norm(module):
                self.offsets[path] = norm_offset(module)
                module.register_forward_hook(self._norm_hook(path))

    def found(self) -> list[NormMaxima]:
        """The norms that linear modules read."""
        return [
            NormMaxima(
                norm=f"{self.path}.{norm}",
                offset=self.offsets[norm],
                linears=tuple(f"{self.path}.{linear}" for linear in linears),
                activations=self.activations[norm],
                weights=self.weights[norm],
            )
            for norm, linears in self.linears.items()
        ]

    def _norm_hook(self, path: str) -> Callable[..., None]:
        def hear(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            largest = output.reshape(-1, output.shape[-1]).abs().amax(0).float().cpu()
            before = self.activations.get(path)
            self.activations[path] = largest if before is None else torch.maximum(before, largest)
            self.last_output[path] = weakref.ref(output)

        return hear

    def _linear_hook(self, path: str) -> Callable[..., None]:
        def hear(module: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
            for norm, output in self.last_output.items():
                if inputs[0] is output() and path not in self.linears.setdefault(norm, []):
                    self.linears[norm].append(path)
                    largest = module.weight.abs().amax(0).float().cpu()
                    before = self.weights.get(norm)
                    self.weights[norm] = largest if before is None else torch.maximum(before, largest)

        return hear


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm over channels: a weight of one axis, perhaps a bias, and nothing else."""
    weight = getattr(module, "weight", None)
    is_vector = isinstance(weight, torch.Tensor) and weight.dim() == 1
    return is_vector and "norm" in type(module).__name__.lower()


def norm_offset(norm: nn.Module) -> float:
    """What a norm adds to its weight (which may be on the meta device): 1 if zeros let something through."""
    assert isinstance(norm.weight, torch.Tensor)
    state = {name: torch.zeros(tensor.shape) for name, tensor in norm.state_dict().items()}
    ramp = torch.linspace(-1.0, 1.0, len(norm.weight))[None]
    output = torch.func.functional_call(norm, state, (ramp,))
    return 0.0 if not output.any() else 1.0


def calibrate_on_questions(
    model: Path, config: CalibrationConfig, folder: Path, *, with_moments: bool = True
) -> Calibration:
    """Sweeps the first questions of a file once.

    Args:
        model: a decoder's checkpoint.
        config: which questions.
        folder: where a sweep may leave hidden states for a while.
        with_moments: tell of linear modules' inputs, too.

    Raises:
        InputError: a model or question file that cannot be used.
    """
    session = Session(folder=folder)
    questions = read_questions(config.questions, limit=config.num_questions, warnings=session.warnings)
    members = open_decoder_members(
        [Member(model=model, head="loglik", max_tokens=config.max_tokens)],
        MachineSettings(),
        session,
        FileSource(),
    )
    try:
        for decoder in members.model.decoders:
            # Fused functions take weights from modules that they do not call, and give no norm's output.
            decoder.unfuse("its norms and linear modules are listened to")
        job = members.prepare(members.render(questions, str(config.questions)), GroupGoal())
        workers = [_listen(decoder) for decoder in members.model.decoders]
        ears = [_listen_to_inputs(decoder) if with_moments else [] for decoder in members.model.decoders]
        for _ in run_sweep(job.sweep, session.folder):
            pass
        return Calibration(
            norms=_merge([[maxima for ear in worker for maxima in ear.found()] for worker in workers]),
            inputs=_merge_inputs([[moments for ear in worker for moments in ear.found()] for worker in ears]),
        )
    finally:
        members.close()


def _listen(decoder: Decoder) -> list[LayerListener]:
    ears = []
    for number, layer in enumerate(decoder.layers):
        ears.append(LayerListener(path=f"layers.{number}"))
        ears[-1].listen(layer)
    return ears


def _listen_to_inputs(decoder: Decoder) -> list[MomentsListener]:
    block = block_inputs(list(decoder.layers))
    ears = []
    for number, layer in enumerate(decoder.layers):
        ears.append(MomentsListener(path=f"layers.{number}", block=block))
        ears[-1].listen(layer)
    return ears


def _merge_inputs(workers: Sequence[Sequence[InputMoments]]) -> list[InputMoments]:
    by_linears: dict[tuple[str, ...], list[InputMoments]] = {}
    for worker in workers:
        for moments in worker:
            by_linears.setdefault(moments.linears, []).append(moments)
    return [merge_moments(found) for found in by_linears.values()]


def _merge(workers: Sequence[Sequence[NormMaxima]]) -> list[NormMaxima]:
    by_norm: dict[str, list[NormMaxima]] = {}
    for worker in workers:
        for maxima in worker:
            by_norm.setdefault(maxima.norm, []).append(maxima)
    return [merge_maxima(found) for found in by_norm.values()]
