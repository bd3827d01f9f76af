"""Hidden states of the group under way, kept on disk by time: a killed run goes on from the layer kept last.

Flow: `KeptStates.open` (a folder, whose job) -> `begin` with a job's first group: a Keeper -> as a layer ends
and `EVERY_S` have passed, each lane writes what it holds -> once all have, states.json names their files, and
those before them go -> at the group's end all go.
A lane's file holds, for each member, hidden states [T, D] in the order of the lane's rows, factors of those
that float16 does not hold, and, where later groups need them, keys and values [2, K, P, H] of public tokens,
of every layer so far.
Only a job's first group is kept: once a group has ended, what is left is planned anew, as another tree.
Independent check (tests): a run killed in a layer and resumed gives the bits of one that was not.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from strata.engine.files import write_text_atomically
from strata.engine.json_files import Schema, check_schema, read_json_object
from strata.engine.plan.sweep_job import SweepJob
from strata.engine.sweep.kept_lanes import fill_lane, write_lane, write_public
from strata.engine.sweep.kept_pieces import Piece, PieceWriter, is_whole
from strata.engine.sweep.lane_worker import LaneWorker
from strata.engine.sweep.shared_keys import PublicKeys
from strata.engine.tree.intervals import join_intervals
from strata.engine.types import InputError

EVERY_S = 600.0
"""What a kill may cost."""
COST_SHARE = 0.02
"""Of a run's time, what keeping may take: where writing is slow, it is done less often."""
MANIFEST = "states.json"


class _Manifest(Schema):
    """What states.json says.

    Attributes:
        identity: of the job, as its caller tells it.
        layout: a digest of the tree and of what each lane computes.
        layer: the last one that all lanes have been through.
        ids: of the questions of the job.
        num_groups: of the job.
        files: for each file its tensors, for each lane of each job that shares the sweep.
    """

    identity: str
    layout: str
    layer: int
    ids: list[str]
    num_groups: int
    files: dict[str, list[Piece]]


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The job that a killed run has left hidden states of: ids of its questions, and its groups."""

    ids: tuple[str, ...]
    num_groups: int


class KeptStates:
    """Where a run keeps hidden states; until it is opened, nowhere.

    Attributes:
        resumed_layers: for each group gone on with, the layer it went on with.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._identity = ""
        self._found: _Manifest | None = None
        self._say: Callable[[str], None] = lambda message: None
        self.resumed_layers: list[int] = []

    def open(
        self, folder: Path, identity: str, left: Collection[str] | None, say: Callable[[str], None]
    ) -> None:
        """From now on first groups are kept in a folder, which need not be there yet.

        Args:
            folder: of these hidden states alone.
            identity: a digest of all that decides a job's scores.
            left: ids of the questions that are still to be scored, to go on from what is there; None to
                begin anew.
            say: told where keeping fails, which ends no run.
        """
        self._folder, self._identity, self._say = folder, identity, say
        found = None if left is None else _read_manifest(folder, identity)
        self._found = (
            found if found is not None and left is not None and set(found.ids) <= set(left) else None
        )
        if self._found is None:
            _remove_all(folder)

    @property
    def pending(self) -> Pending | None:
        """The job that an interrupted run was computing, if it left hidden states."""
        found = self._found
        return None if found is None else Pending(ids=tuple(found.ids), num_groups=found.num_groups)

    def begin(self, jobs: Sequence[SweepJob], ids: Sequence[str]) -> Keeper | None:
        """Of the first group of jobs that share a sweep, and whose questions have these ids."""
        if self._folder is None:
            return None
        layout = layout_of(jobs)
        found = self._take_found(layout)
        manifest = _Manifest(
            identity=self._identity,
            layout=layout,
            layer=-1 if found is None else found.layer,
            ids=list(ids),
            num_groups=len(jobs[0].groups),
            files={} if found is None else found.files,
        )
        keeper = Keeper(
            folder=self._folder,
            manifest=manifest,
            num_lanes=len(jobs[0].groups[0]),
            say=self._say,
        )
        if keeper.next_layer:
            self.resumed_layers.append(keeper.next_layer)
        return keeper

    def _take_found(self, layout: str) -> _Manifest | None:
        """What was left of a group of this layout, once; another's stays where it is."""
        found = self._found
        if self._folder is None or found is None or found.layout != layout:
            return None
        self._found = None
        return found if all(is_whole(self._folder / name, own) for name, own in found.files.items()) else None


class Keeper:
    """Keeps one group's hidden states, and knows those that a killed run has left of it.

    Lanes call it from their threads. They are not at the same layer all the time: the first that finds it is
    time names the next layer that none of them has left.
    """

    def __init__(
        self,
        *,
        folder: Path,
        manifest: _Manifest,
        num_lanes: int,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._manifest, self._num_lanes, self._say = folder, manifest, num_lanes, say
        self._lock = threading.Lock()
        self._reached: dict[int, int] = {}
        self._due: int | None = None
        self._written: dict[str, list[Piece]] = {}
        self._next_s = perf_counter() + EVERY_S

    @property
    def next_layer(self) -> int:
        """The layer to go on with; 0 where nothing was left."""
        return self._manifest.layer + 1

    def fill(self, part: int, lane: int, worker: LaneWorker, public: PublicKeys) -> None:
        """Puts into a lane's stores what was kept of it.

        Args:
            part: which of the jobs that share the sweep.
            lane: which of its lanes.
            worker: the lane's.
            public: where the keys of public tokens go that were kept with it.
        """
        path = self._path(part, lane, self._manifest.layer)
        fill_lane(path, self._manifest.files[path.name], worker, public)

    def end_layer(
        self, layer: int, lane: int, workers: Sequence[LaneWorker], public: Sequence[PublicKeys]
    ) -> None:
        """Says that a lane, in all jobs that share the sweep, has been through a layer; may write it down."""
        with self._lock:
            self._reached[lane] = layer
            last = len(workers[0].decoder.layers) - 1
            if self._due is None and perf_counter() >= self._next_s:
                others = [reached + 1 for other, reached in self._reached.items() if other != lane]
                due = max([layer, *others])
                self._due = due if due < last else None
            is_due = self._due == layer
        if is_due:
            self._keep(layer, lane, workers, public)

    def end(self) -> None:
        """The group's scores are safe: its hidden states are no longer needed."""
        if self._manifest.files:
            _remove_all(self._folder)

    def _keep(
        self, layer: int, lane: int, workers: Sequence[LaneWorker], public: Sequence[PublicKeys]
    ) -> None:
        started = perf_counter()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for part, worker in enumerate(workers):
                path = self._path(part, lane, layer)
                with PieceWriter(path) as writer:
                    write_lane(writer, worker)
                    if self._manifest.num_groups > 1:
                        write_public(writer, worker, public[part], layer)
                with self._lock:
                    self._written[path.name] = writer.pieces
            self._settle(layer, self._num_lanes * len(workers), started)
        except OSError as error:
            self._stop(error)

    def _settle(self, layer: int, num_files: int, started: float) -> None:
        """Once all lanes are on disk, makes theirs the ones to go on from."""
        with self._lock:
            if len(self._written) < num_files:
                return
            changed = {"layer": layer, "files": dict(self._written)}
            self._manifest = self._manifest.model_copy(update=changed)
            write_text_atomically(self._folder / MANIFEST, self._manifest.model_dump_json())
            for path in self._folder.glob("layer-*"):
                if path.name not in self._written:
                    path.unlink(missing_ok=True)
            self._written, self._due = {}, None
            took_s = perf_counter() - started
            self._next_s = perf_counter() + max(EVERY_S, took_s / COST_SHARE)

    def _stop(self, error: OSError) -> None:
        """Keeps nothing any more; the run goes on."""
        with self._lock:
            self._next_s, self._due = float("inf"), None
        _remove_all(self._folder)
        reason = error.strerror or str(error)
        self._say(f"hidden states are not kept ({self._folder}: {reason}); a killed run repeats its group")

    def _path(self, part: int, lane: int, layer: int) -> Path:
        return self._folder / f"layer-{layer}.job-{part}.lane-{lane}"


def layout_of(jobs: Sequence[SweepJob]) -> str:
    """A digest of the tokens of jobs, of who computes them, and of each lane's rows in the first group."""
    digest = hashlib.sha256()
    for job in jobs:
        tree = job.tree
        for array in (tree.token_ids, tree.position_ids, tree.run_starts):
            digest.update(array.tobytes())
        for lane in job.groups[0]:
            intervals = [rows for batch in lane.micro_batches for rows in batch.rows]
            digest.update(repr(join_intervals(tuple(intervals))).encode())
        is_forest = tree.tree_starts is not None
        digest.update(repr((tree.paths, is_forest, job.members, job.model.dtype)).encode())
    return digest.hexdigest()


def _read_manifest(folder: Path, identity: str) -> _Manifest | None:
    """What a killed run of the same job has left; whatever else is there is of no use."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = check_schema(_Manifest, read_json_object(path), str(path))
    except InputError:
        return None
    return manifest if manifest.identity == identity else None


def _remove_all(folder: Path) -> None:
    """Removes the folder with what it keeps; the manifest first, so that it never names what is gone."""
    if not folder.is_dir():
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
