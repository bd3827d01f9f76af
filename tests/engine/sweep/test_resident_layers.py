"""An open model swept more than once: resident layers are read once, while they fit, and change no number."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from strata.engine.machine.machine import Budgets, Machine
from strata.engine.machine.rates import MachineRates
from strata.engine.model.open_model import BASE_MEMBER, Computing, OpenModel, open_model
from strata.engine.plan.overrides import PlanOverrides
from strata.engine.plan.sweep_job import PlanRequest, SweepJob, plan_sweep_job
from strata.engine.sweep import sweep
from strata.engine.sweep.coordinator import Coordinator
from strata.engine.sweep.sweep import run_sweep, run_sweeps
from strata.engine.tree.targets import ScoredTree, build_scored_tree
from strata.engine.weights.checkpoint import open_checkpoint
from strata.engine.weights.safetensors_file import StoredTensor
from strata.engine.weights.tensor_reader import TensorReader

from ...families import LAYERS_PER_MODEL, VOCABULARY_SIZE
from ..heads.scored_prompts import branch, prompt
from .test_prefetch import CPU, CountingLoader, consume, make_stream

pytestmark = pytest.mark.timeout(60)

ALL_LAYERS = tuple(range(LAYERS_PER_MODEL))
RATES = MachineRates(gemm_flop_per_s=1e11, disk_bytes_per_s=1e9)
AMPLE_BYTES = 1 << 40
FIXED = {"num_groups": 1, "hidden_store": "ram", "micro_batch_tokens": 24}


class NotingReader(TensorReader):
    """Notes which layers it reads tensors of; from `fails_at` on there is no disk."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[int] = []
        self.fails_at: int | None = None

    def read_into(self, tensor: StoredTensor, buffer: torch.Tensor, first_byte: int = 0) -> None:
        _, _, after = tensor.name.partition("layers.")
        if after:
            layer = int(after.split(".")[0])
            if layer == self.fails_at:
                raise OSError("the disk is gone")
            self.layers.append(layer)
        super().read_into(tensor, buffer, first_byte)


@dataclass(kw_only=True, eq=False)
class Sweeper:
    """An open model, and the jobs that it is given."""

    model: OpenModel
    reader: NotingReader
    folder: Path
    memory_bytes: int = AMPLE_BYTES
    devices: tuple[str, ...] = ("cpu",)
    overrides: dict[str, object] = field(default_factory=dict)

    def plan(self, scored_tree: ScoredTree, **overrides: object) -> SweepJob:
        budgets = Budgets(device_bytes=self.memory_bytes, host_bytes=self.memory_bytes)
        dtype = self.model.dtype
        machine = Machine(devices=self.devices, dtype=dtype, linear="dense", budgets=budgets, rates=RATES)
        fixed = PlanOverrides(**(FIXED | self.overrides | overrides))
        request = PlanRequest(machine=machine, overrides=fixed)
        return plan_sweep_job(self.model, scored_tree, request, head_bytes=lambda targets: 0)

    def run(self, job: SweepJob) -> Swept:
        before, self.reader.layers = self.reader.num_bytes_read, []
        *_, last = run_sweep(job, self.folder)
        return Swept(
            plan_bytes=job.plan.bytes_read,
            num_bytes=self.reader.num_bytes_read - before,
            layers=set(self.reader.layers),
            readouts=last.readouts[BASE_MEMBER],
        )

    def sweep(self, scored_tree: ScoredTree, **overrides: object) -> Swept:
        return self.run(self.plan(scored_tree, **overrides))

    def addresses(self) -> dict[int, list[int]]:
        """Where the weights of each resident layer are."""
        return {
            layer: [weight.data_ptr() for weights in placed.values() for weight in weights.values()]
            for layer, placed in self.model.resident.items()
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Swept:
    """What a sweep read, by its plan and by the reader's count, and what it found."""

    plan_bytes: int
    num_bytes: int
    layers: set[int]
    readouts: torch.Tensor


@pytest.fixture
def open_sweeper(checkpoint, tmp_path) -> Callable[..., Sweeper]:
    """`open_sweeper(dtype=..., memory_bytes=..., devices=..., **overrides)`: a model that is not warm yet."""

    def build(
        dtype: torch.dtype = torch.float32,
        memory_bytes: int = AMPLE_BYTES,
        devices: tuple[str, ...] = ("cpu",),
        **overrides: object,
    ) -> Sweeper:
        reader = NotingReader()
        computing = Computing(devices=devices, dtype=dtype)
        return Sweeper(
            model=open_model(open_checkpoint(checkpoint("llama-gqa")), (), computing, reader),
            reader=reader,
            folder=tmp_path,
            memory_bytes=memory_bytes,
            devices=devices,
            overrides=overrides,
        )

    return build


def tree_of(num_branches: int, seed: int = 0) -> ScoredTree:
    """Questions of two branches, all of which begin alike, each read out at its end."""
    generator = np.random.default_rng(seed)
    opening = generator.integers(0, VOCABULARY_SIZE, 10)
    prompts = []
    for number in range(num_branches // 2):
        asked = np.concatenate((opening, generator.integers(0, VOCABULARY_SIZE, 6)))
        branches = []
        for option in range(2):
            ids = np.concatenate((asked, generator.integers(0, VOCABULARY_SIZE, 5 + option))).tolist()
            branches.append(branch(option, ids, [(len(ids) - 1, None)]))
        prompts.append(prompt(branches, name=str(number)))
    return build_scored_tree(prompts)


LAYOUTS = {
    "one group": {},
    "groups": {"num_groups": 3},
    "two devices, groups": {"devices": ("cpu", "cpu"), "num_groups": 2},
    "on disk": {"hidden_store": "disk"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_resident", range(LAYERS_PER_MODEL + 1))
def test_a_second_sweep_reads_streamed_layers_alone(num_resident, dtype, layout, open_sweeper):
    sweeper, tree = open_sweeper(dtype, resident_layers=num_resident, **LAYOUTS[layout]), tree_of(8)
    job = sweeper.plan(tree)
    resident = set(job.plan.resident_layers)
    assert len(resident) == num_resident
    first = sweeper.run(job)
    kept = sweeper.addresses()
    assert set(kept) == resident
    assert first.num_bytes == first.plan_bytes
    assert first.layers == set(ALL_LAYERS)

    for _ in range(2):
        again = sweeper.sweep(tree)
        assert again.num_bytes == again.plan_bytes
        saved = sum(sweeper.model.loader.stored_bytes(layer) for layer in resident)
        assert first.num_bytes - again.num_bytes == saved
        assert again.layers == set(ALL_LAYERS) - resident
        assert torch.equal(again.readouts, first.readouts)
        assert sweeper.addresses() == kept


def test_other_questions_are_read_out_as_by_a_model_that_is_not_warm(open_sweeper):
    warm, tree = open_sweeper(resident_layers=2), tree_of(12, seed=2)
    warm.sweep(tree_of(4, seed=1))
    again, cold = warm.sweep(tree), open_sweeper(resident_layers=2).sweep(tree)
    assert torch.equal(again.readouts, cold.readouts)
    assert again.num_bytes == again.plan_bytes < cold.num_bytes == cold.plan_bytes


def tight_bytes(open_sweeper: Callable[..., Sweeper], tree: ScoredTree) -> int:
    """Memory for a tree's job if no layer stays, and not for one if all do."""
    sweeper = open_sweeper()
    streamed, resident = (
        sweeper.plan(tree, resident_layers=count).plan.memory_bytes for count in (0, LAYERS_PER_MODEL)
    )
    assert streamed < resident
    return streamed


def test_a_larger_job_that_does_not_fit_beside_the_held_layers_drops_them(open_sweeper):
    small, large = tree_of(4), tree_of(100)
    sweeper = open_sweeper(memory_bytes=tight_bytes(open_sweeper, large))
    first = sweeper.sweep(small)
    assert set(sweeper.model.resident) == set(ALL_LAYERS)

    job = sweeper.plan(large)
    assert job.plan.resident_layers == ()
    assert job.plan.memory_bytes <= sweeper.memory_bytes
    assert sweeper.model.resident == {}
    swept = sweeper.run(job)
    assert swept.layers == set(ALL_LAYERS)
    assert swept.num_bytes == swept.plan_bytes
    assert torch.equal(swept.readouts, open_sweeper(resident_layers=0).sweep(large).readouts)

    again = sweeper.sweep(small)
    assert again.num_bytes == again.plan_bytes == first.num_bytes
    assert torch.equal(again.readouts, first.readouts)
    assert set(sweeper.model.resident) == set(ALL_LAYERS)


def test_a_larger_job_that_fits_beside_the_held_layers_keeps_them(open_sweeper):
    sweeper = open_sweeper(resident_layers=1)
    sweeper.sweep(tree_of(4))
    kept = sweeper.addresses()
    swept = sweeper.sweep(tree_of(100))
    assert swept.num_bytes == swept.plan_bytes
    assert sweeper.addresses() == kept


@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_job_planned_before_another_one_ran_holds_the_layers_of_its_plan_alone(num_groups, open_sweeper):
    sweeper, tree = open_sweeper(num_groups=num_groups), tree_of(8)
    jobs = [sweeper.plan(tree, resident_layers=count) for count in (LAYERS_PER_MODEL, 1, 0, 2)]
    expected = open_sweeper(num_groups=num_groups).sweep(tree).readouts
    for job in jobs:
        assert torch.equal(sweeper.run(job).readouts, expected)
        assert set(sweeper.model.resident) == set(job.plan.resident_layers)


def test_a_job_planned_for_layers_that_were_dropped_meanwhile_reads_them(open_sweeper):
    sweeper, tree = open_sweeper(), tree_of(8)
    first = sweeper.sweep(tree)
    job = sweeper.plan(tree)
    sweeper.model.resident.clear()
    swept = sweeper.run(job)
    assert swept.layers == set(ALL_LAYERS)
    assert torch.equal(swept.readouts, first.readouts)


def test_a_sweep_that_failed_half_way_leaves_a_model_that_can_be_swept(open_sweeper):
    sweeper, tree = open_sweeper(), tree_of(8)
    sweeper.reader.fails_at = 1
    with pytest.raises(OSError, match="the disk is gone"):
        sweeper.sweep(tree)
    sweeper.reader.fails_at = None
    swept, cold = sweeper.sweep(tree), open_sweeper().sweep(tree)
    assert swept.num_bytes == swept.plan_bytes
    assert torch.equal(swept.readouts, cold.readouts)
    assert set(sweeper.model.resident) == set(ALL_LAYERS)


def test_a_sweep_that_is_left_ends_whoever_still_knows_of_it(open_sweeper, monkeypatch):
    """As in a Python that keeps the frame of a generator that was closed (3.12.3)."""
    known = []
    monkeypatch.setattr(sweep, "run_sweeps", lambda *rest: known.append(run_sweeps(*rest)) or known[-1])
    sweeper = open_sweeper(resident_layers=0, num_groups=3)
    before, groups = set(threading.enumerate()), run_sweep(sweeper.plan(tree_of(8)), sweeper.folder)
    assert next(groups).index == 0
    groups.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("num_resident", [0, 1, LAYERS_PER_MODEL])
def test_a_sweep_that_is_left_after_a_group_ends_and_leaves_the_model_warm(num_resident, open_sweeper):
    sweeper, tree = open_sweeper(resident_layers=num_resident, num_groups=3), tree_of(8)
    whole = open_sweeper(resident_layers=num_resident, num_groups=3).sweep(tree)
    before, groups = set(threading.enumerate()), run_sweep(sweeper.plan(tree), sweeper.folder)
    assert next(groups).index == 0
    groups.close()
    deadline = time.monotonic() + 3
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left
    assert len(sweeper.model.resident) == num_resident
    again = sweeper.sweep(tree)
    assert again.num_bytes == again.plan_bytes
    assert len(again.layers) == LAYERS_PER_MODEL - num_resident
    assert torch.equal(again.readouts, whole.readouts)


def test_a_stream_takes_over_what_another_one_kept():
    kept: dict[int, dict[torch.device, dict[str, torch.Tensor]]] = {}
    resident = frozenset({1, 3})
    for order in ([0, 1, 2, 3, 4, 0, 2, 4], [0, 2, 4, 0, 2, 4]):
        loader, coordinator = CountingLoader(), Coordinator()
        stream = make_stream(loader, coordinator, sweeps=2, resident=resident, kept=kept)
        coordinator.start(stream.read_all, "layer-reader")
        coordinator.run([lambda: consume(stream, loader, 2, resident=resident)], "sweep")  # noqa: B023
        assert loader.order == order
        assert set(kept) == resident
        assert all((kept[layer][CPU]["weight"] == layer).all() for layer in resident)
