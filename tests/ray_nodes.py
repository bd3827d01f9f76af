"""Ray clusters of this machine alone, for tests: on loopback, and with no process left when they end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from strata.engine.ray_cluster import LOOPBACK_SWITCH

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
END_TIMEOUT_S = 120
NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}


class LocalCluster:
    """A head and one more node of one CPU each."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        head = {**NODE, "include_dashboard": False, "temp_dir": folder}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second: Any = None

    @property
    def address(self) -> str:
        """Of the head."""
        return self._cluster.address

    def add_second(self) -> None:
        """Adds the node beside the head, unless it is there."""
        if self.second is None:
            self.second = self._cluster.add_node(**NODE)
            self._cluster.wait_for_nodes()

    def kill_second(self) -> None:
        """Kills all processes of the node beside the head, as a machine does that loses its power."""
        raylet = psutil.Process(self.second.all_processes["raylet"][0].process.pid)
        processes = [raylet, *raylet.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, END_TIMEOUT_S)
        self._cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def end(self) -> None:
        """Ends all nodes."""
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def ray_on_loopback() -> Iterator[None]:
    """Ray, so set that nothing of it can be reached from another machine, and that it leaves no token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOOPBACK_SWITCH, "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
        pytest.importorskip("ray")
        from ray._private import ray_constants

        # Read when ray is imported, which another test may have done.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        yield


@pytest.fixture(scope="module")
def two_nodes(ray_on_loopback: None) -> Iterator[LocalCluster]:
    """A cluster of two nodes on this machine, of one CPU each; none of its processes is left."""
    import ray

    # Short, since Ray puts sockets under it.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        # Beside its temporary folder Ray writes the address to $RAY_TMPDIR/ray, which it does not make.
        patch.setenv("RAY_TMPDIR", folder)
        (Path(folder) / "ray").mkdir()
        cluster = LocalCluster(folder)
        try:
            cluster.add_second()
            yield cluster
        finally:
            processes = psutil.Process().children(recursive=True)
            ray.shutdown()
            cluster.end()
            assert_ended(processes)


def actors(kind: str) -> list[psutil.Process]:
    """Processes of this one's clusters that hold or held an actor of a class."""
    children = psutil.Process().children(recursive=True)
    # While it runs a method, its title names that too.
    return [process for process in children if "".join(process.cmdline()[:1]).startswith(f"ray::{kind}")]


def assert_ended(processes: list[psutil.Process]) -> None:
    """None of the processes is left, or they end soon."""
    left = psutil.wait_procs(processes, END_TIMEOUT_S)[1]
    assert not left, [(process.status(), process.cmdline()[:3]) for process in left]


def assert_only_this_machine_is_listened_to() -> None:
    """No socket of this process and its children can be reached from elsewhere."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [socket for process in processes for socket in process.net_connections("inet")]
    listening = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert listening
    assert listening <= LOOPBACK
