"""pytest -p simulated_cuda.plugin: tests run on a machine with two cards that are made of CPU tensors.

A test in which there is a race fails. `--on-device cuda:0` (on_device.py) sends them there.
`--accounts FOLDER` leaves a JSON file a process, of what was counted in all.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import accelerate  # noqa: F401  (these look for CUDA as they are imported, and would take it for real)
import peft  # noqa: F401
import pytest
import transformers  # noqa: F401

from .accounts import ACCOUNTS, Accounts
from .operations import OneDevice
from .settings import SETTINGS, MachineSettings
from .torch_cuda import can_be_installed, install

pytest_plugins = ["simulated_cuda.on_device"]
TOTALS: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simulated CUDA")
    group.addoption("--capability", default="7.5", help="compute capability of the cards")
    group.addoption("--asynchronous-uploads", action="store_true", help="uploads order nothing by waiting")
    group.addoption("--accounts", default="", help="folder for what was counted")


def pytest_configure(config: pytest.Config) -> None:
    reason = can_be_installed()
    if reason is not None:
        raise pytest.UsageError(f"no CUDA can be simulated: {reason}")
    major, minor = config.getoption("--capability").split(".")
    SETTINGS.capability = (int(major), int(minor))
    SETTINGS.uploads_wait = not config.getoption("--asynchronous-uploads")
    install()
    from .engine_edges import follow_engine

    follow_engine()


@pytest.fixture
def accounts() -> Accounts:
    """What is counted during this test; races that it takes out do not fail it."""
    return ACCOUNTS


@pytest.fixture
def card_settings() -> Iterator[MachineSettings]:
    """The machine, to be changed for this test."""
    before = dataclasses.replace(SETTINGS)
    yield SETTINGS
    for field in dataclasses.fields(MachineSettings):
        setattr(SETTINGS, field.name, getattr(before, field.name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    ACCOUNTS.reset()
    with OneDevice():
        yield
    TOTALS["tests"] += 1
    TOTALS["accesses"] += ACCOUNTS.accesses
    TOTALS["waits"] += sum(ACCOUNTS.waits.values())
    TOTALS["kernels"] += sum(ACCOUNTS.kernels.values())
    if ACCOUNTS.races:
        TOTALS["races"] += sum(ACCOUNTS.races.values())
        pytest.fail(ACCOUNTS.summary())


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder = session.config.getoption("--accounts")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        found = {name: TOTALS[name] for name in ("tests", "races", "accesses", "waits", "kernels")}
        Path(folder, f"accounts-{os.getpid()}.json").write_text(json.dumps(found), encoding="ascii")
