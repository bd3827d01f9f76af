"""A Ray cluster: joining one, its nodes, and actors that are bound to them. Knows nothing of what actors do.

Ray is an extra and slow to load: it is imported where it is first needed.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from strata.engine.types import InputError

MAX_RESTARTS = 2
"""How often an actor that died on a living node is started again, and what it was asked repeated."""

START_TIMEOUT_S = 300.0
"""An actor waits for its node's CPUs or GPUs to be free; then it imports torch."""

CONNECT_TIMEOUT_S = 10.0

LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, Ray listens on 127.0.0.1 alone, as it does by itself on macOS and Windows."""


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Whether a cluster scores, and how the questions are shared out; every field is a flag of its name."""

    ray: str | None = None
    """Share the questions out over the nodes of a Ray cluster: HOST:PORT of its head, auto for the one that
    this machine is in, or local. Every node has to see the model at the same path."""
    ray_batch: int = 2000
    """With --ray: questions that a node is given at a time, a sweep each; --resume keeps finished ones."""

    def check(self) -> None:
        """Raises InputError when a setting means nothing."""
        if self.ray is not None:
            check_address(self.ray)
        if self.ray_batch < 1:
            raise InputError(f"--ray-batch: {self.ray_batch}; expected 1 or more questions")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster: its id, the machine's address, CPU cores and GPUs."""

    id: str
    host: str = ""
    num_cpus: float
    num_gpus: int

    @property
    def devices(self) -> tuple[str, ...]:
        """All its GPUs, else its CPU."""
        return tuple(f"cuda:{number}" for number in range(self.num_gpus)) or ("cpu",)


def check_address(address: str) -> None:
    """Raises InputError for what can be no address of a cluster."""
    if address not in ("auto", "local") and not re.fullmatch(r"[^\s/]+:\d{1,5}", address):
        raise InputError(f"--ray: {address!r}; expected auto, local or HOST:PORT of the cluster's head")


def connect(address: str) -> bool:
    """Joins a cluster, or starts one; returns whether it did, False where there is a connection already.

    Args:
        address: of the cluster's head; `auto` for the one that this machine is in, `local` to start one here
            that listens on 127.0.0.1 alone and ends with the connection.

    Raises:
        InputError: Ray is not installed, or no cluster is at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ.setdefault(LOOPBACK_SWITCH, "0")
    try:
        import ray
    except ImportError:
        raise InputError(
            '--ray: needs Ray; expected an install with the extra: pip install "strata-score[ray]"'
        ) from None
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        _check_reachable(address)
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--ray: {address}: no cluster there ({one_line(error)}); expected HOST:PORT of the head of one "
            "that this machine is in, auto or local"
        ) from None
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which `ray.init` replaces by one that exits without a word."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _check_reachable(address: str) -> None:
    """Raises OSError when nothing listens at HOST:PORT, where Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def one_line(error: Exception) -> str:
    """The beginning of an error's message."""
    return " ".join(str(error).split())[:200]


def list_nodes() -> list[Node]:
    """The cluster's living nodes that have a CPU or a GPU to compute with, in the order of their ids."""
    import ray

    nodes = [
        Node(
            id=node["NodeID"],
            host=node["NodeManagerAddress"],
            num_cpus=float(node["Resources"].get("CPU", 0)),
            num_gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted((node for node in nodes if node.num_cpus or node.num_gpus), key=lambda node: node.id)


def check_nodes(nodes: Sequence[Node]) -> None:
    """Raises InputError when there are none."""
    if not nodes:
        raise InputError("--ray: no node of the cluster has CPUs or GPUs; expected one at least")


def start_actor(kind: type, node: Node, *arguments: object) -> Any:
    """Starts an actor on a node, with all of its GPUs or else all of its cores; returns Ray's handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {"num_gpus": node.num_gpus} if node.num_gpus else {"num_cpus": node.num_cpus}
    actor: Any = ray.remote(kind).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False),
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
        **options,
    )
    return actor.remote(*arguments)


def collect(asked: Sequence[Any], timeout_s: float | None = None) -> list[Any]:
    """Waits for what actors were asked.

    Args:
        asked: Ray's references.
        timeout_s: how long; None waits for ever.

    Raises:
        InputError: what an actor raised.
        OSError: a node was lost, or the time is over.
    """
    import ray

    try:
        return ray.get(list(asked), timeout=timeout_s)
    except InputError as error:
        # What Ray raises has the actor's traceback as its message.
        raise InputError(str(getattr(error, "cause", error))) from None
    except ray.exceptions.GetTimeoutError:
        raise OSError(
            f"--ray: not every node was ready in {timeout_s:g} s; expected all GPUs of each, or else all "
            "of its CPUs, to be free"
        ) from None
    except lost_errors() as error:
        raise OSError(f"a node of the Ray cluster was lost ({one_line(error)})") from error


def lost_errors() -> tuple[type[Exception], ...]:
    """What Ray raises when the node of an actor is gone, or the actor could not be started again."""
    import ray

    return (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError)


def disconnect(actors: Sequence[Any], *, connected_here: bool) -> None:
    """Ends actors, and the connection unless this process had it before; a cluster stays."""
    import ray

    for actor in actors:
        ray.kill(actor)
    if connected_here:
        ray.shutdown()
