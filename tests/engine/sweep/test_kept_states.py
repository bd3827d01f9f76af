"""Hidden states that are kept by time: a run that ends in a layer goes on from the one kept, bit for bit."""

from __future__ import annotations

import errno
import json
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from strata.engine.deadline import Deadline
from strata.engine.jobs.job import Session
from strata.engine.machine.settings import MachineSettings
from strata.engine.members.member import Member
from strata.engine.questions.question_file import read_questions
from strata.engine.scorer import Scorer
from strata.engine.sweep import kept_states
from strata.engine.sweep.kept_pieces import PieceWriter
from strata.engine.sweep.lane_worker import LaneWorker
from strata.engine.types import RunWarnings

from ...families import LAYERS_PER_MODEL
from ..pipeline.demo_pipeline import MEMBER, write_questions
from ..pipeline.demo_pipeline import run as run_demo

pytestmark = [pytest.mark.usefixtures("fixed_rates"), pytest.mark.timeout(120)]

STREAMED = {"head": "letters", "debias": "rotate", "resident_layers": 0, "micro_batch_tokens": 48}
LAST_LAYER = LAYERS_PER_MODEL - 1


@pytest.fixture
def always(monkeypatch):
    """Hidden states are kept after every layer, and not every ten minutes."""
    monkeypatch.setattr(kept_states, "EVERY_S", 0.0)
    monkeypatch.setattr(kept_states, "COST_SHARE", float("inf"))


@contextmanager
def failing_in_layer(layer, when):
    """A worker fails in a layer, `when(worker, micro-batch)` says; the run must end with that."""
    original = LaneWorker.run

    def run(worker, index, member, carried):
        if worker._layer == layer and when(worker, index):
            raise RuntimeError("device lost")
        return original(worker, index, member, carried)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaneWorker, "run", run)
        with pytest.raises(RuntimeError, match="device lost"):
            yield


def assert_same_bits(run, other):
    for row, other_row in zip(run.scores, other.scores, strict=True):
        assert row.question.id == other_row.question.id
        np.testing.assert_array_equal(row.scores, other_row.scores)


def interrupt(score, out, **settings):
    """Ends a run in its last layer, when all devices have been through one."""

    def is_kept(worker, index):
        manifest, ends = out / "states" / "states.json", time.monotonic() + 20
        while index and not manifest.is_file() and time.monotonic() < ends:
            time.sleep(0.01)
        return index > 0

    with failing_in_layer(LAST_LAYER, is_kept):
        score(out=out, **settings)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
@pytest.mark.parametrize("store", ["ram", "disk"])
def test_goes_on_from_the_layer_kept(store, devices, num_groups, checkpoint, score, tmp_path):
    settings = {**STREAMED, "model": checkpoint("llama-gqa"), "devices": devices, "hidden_store": store}
    settings |= {"num_groups": num_groups}
    whole = score(**settings)
    interrupt(score, out=tmp_path / "out", **settings)
    assert (tmp_path / "out" / "states" / "states.json").is_file()
    resumed = score(out=tmp_path / "out", resume=True, **settings)
    (layer,) = resumed.record["measured"]["resumed_layers"]
    assert layer == LAST_LAYER or (devices == "cpu,cpu" and layer)
    assert resumed.record["measured"]["bytes_read"] < whole.record["measured"]["bytes_read"]
    assert_same_bits(resumed, whole)
    assert not (tmp_path / "out" / "states").exists()


@pytest.mark.usefixtures("always")
def test_groups_that_ended_are_not_gone_on_with(checkpoint, score, tmp_path):
    """Hidden states of the first group go when its scores are safe."""
    settings = {**STREAMED, "model": checkpoint("llama-gqa"), "num_groups": 2, "out": tmp_path / "out"}
    whole = score(**(settings | {"out": tmp_path / "whole"}))
    with failing_in_layer(0, lambda worker, index: not worker.lane.publishes):
        score(**settings)
    assert not (tmp_path / "out" / "states").exists()
    resumed = score(resume=True, **settings)
    assert resumed.record["measured"]["resumed_layers"] == []
    for row, expected in zip(resumed.scores, whole.scores, strict=True):
        np.testing.assert_allclose(row.scores, expected.scores, atol=1e-5)


@pytest.mark.usefixtures("always")
def test_what_overflowed_stays_float32(checkpoint, score, tmp_path):
    folder = tmp_path / "loud"
    folder.mkdir()
    for path in checkpoint("llama-gqa").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name in ("up_proj", "down_proj"):
        tensors[f"model.layers.0.mlp.{name}.weight"] *= 400.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {**STREAMED, "model": folder, "dtype": "float16"}
    whole = score(**settings)
    assert whole.record["measured"]["float32_micro_batches"] > 0
    interrupt(score, out=tmp_path / "out", **settings)
    assert_same_bits(score(out=tmp_path / "out", resume=True, **settings), whole)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("damage", ["cut short", "other bytes", "no manifest", "other job"])
def test_what_is_damaged_is_not_used(damage, checkpoint, score, tmp_path):
    settings = {**STREAMED, "model": checkpoint("llama-gqa")}
    whole = score(**settings)
    interrupt(score, out=tmp_path / "out", **settings)
    states = tmp_path / "out" / "states"
    (rows,) = states.glob("layer-*")
    content = rows.read_bytes()
    manifest = json.loads((states / "states.json").read_text())
    if damage == "cut short":
        rows.write_bytes(content[:-1])
    elif damage == "other bytes":
        rows.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no manifest":
        (states / "states.json").write_text("{")
    else:
        (states / "states.json").write_text(json.dumps(manifest | {"identity": "another"}))
    resumed = score(out=tmp_path / "out", resume=True, **settings)
    assert resumed.record["measured"]["resumed_layers"] == []
    assert_same_bits(resumed, whole)


@pytest.mark.usefixtures("always")
def test_a_full_disk_ends_keeping_and_not_the_run(checkpoint, score, tmp_path, monkeypatch):
    def full(writer, name, parts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PieceWriter, "add", full)
    run = score(model=checkpoint("llama-gqa"), out=tmp_path / "out", **STREAMED)
    (message,) = run.record["warnings"]["messages"]
    assert message.startswith("hidden states are not kept (")
    assert "No space left on device" in message
    assert not (tmp_path / "out" / "states").exists()


def test_a_short_run_keeps_nothing(checkpoint, score, tmp_path, monkeypatch):
    monkeypatch.setattr(PieceWriter, "add", lambda *arguments: pytest.fail("kept before its time"))
    score(model=checkpoint("llama-gqa"), out=tmp_path / "out", **STREAMED)


@pytest.mark.usefixtures("always")
def test_members_that_share_a_sweep(checkpoint, questions, tmp_path):
    """Two trees of one base, each with a member of its own."""
    model = checkpoint("llama-gqa")
    members = [
        Member(model=model, head="letters", debias="rotate", label="letters"),
        Member(model=model, head="loglik", label="loglik", context="none"),
    ]
    asked = read_questions(questions, warnings=RunWarnings())

    def sweep(folder, ids):
        session = Session(folder=tmp_path)
        if folder is not None:
            session.states.open(folder, "a job", ids, pytest.fail)
        machine = MachineSettings(devices="cpu", dtype="float32")
        with Scorer.open(members, machine, session=session) as scorer:
            job = scorer.prepare(scorer.render(asked, "questions"))
            with closing(job.groups(Deadline())) as groups:
                rows = [row for group in groups for row in group]
        return {row.question.id: row.scores for row in rows}, session.states.resumed_layers

    ids = [question.id for question in asked]
    whole, _ = sweep(None, None)
    with failing_in_layer(LAST_LAYER, lambda worker, index: True):
        sweep(tmp_path / "states", None)
    resumed, layers = sweep(tmp_path / "states", ids)
    assert layers == [LAST_LAYER]
    for name, scores in whole.items():
        np.testing.assert_array_equal(resumed[name], scores)


@pytest.mark.usefixtures("always")
def test_a_chunk_of_a_pipeline_is_gone_on_with_first(tmp_path, monkeypatch):
    monkeypatch.setattr("strata.engine.pipeline.chunks.chunk_size", lambda cost, num, deadline: 6)
    text = f"""\
members: {{one: {{{MEMBER}}}}}
stages: [{{members: [one]}}]
machine: {{dtype: float32, devices: cpu}}
"""
    questions = write_questions(tmp_path / "questions.csv", num=16)
    whole = run_demo(tmp_path, text, questions, out=tmp_path / "whole")
    chunks = []

    def in_the_second_chunk(worker, index):
        chunks.extend([] if worker in chunks else [worker])
        return len(chunks) == 2

    with failing_in_layer(2, in_the_second_chunk):
        run_demo(tmp_path, text, questions)
    # Fewer a chunk from now on: only what was kept tells which six belong together.
    monkeypatch.setattr("strata.engine.pipeline.chunks.chunk_size", lambda cost, num, deadline: 4)
    resumed = run_demo(tmp_path, text, questions, resume=True)
    assert resumed.record["measured"]["resumed_layers"] == [2]
    for row, expected in zip(resumed.scores, whole.scores, strict=True):
        np.testing.assert_allclose(row.scores, expected.scores, atol=1e-5)
