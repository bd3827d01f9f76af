"""Walks every causal language model that transformers has: rehearsed right, or refused by name before work.

A type's default config is opened as a checkpoint's would be and rehearsed against transformers' own modules
(`engine/model/rehearsal.py`), each in a process of its own with bounds on time and memory. What neither
agrees nor is refused in one line that names the type is wrong; there must be none.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import psutil
import torch
import transformers

from strata.engine.model.rehearsal import build_rehearsed
from strata.engine.types import InputError
from strata.engine.weights.checkpoint_folder import CONFIG_FILE, read_config
from strata.engine.weights.stored_checkpoint import decoder_config

MAX_SECONDS = 60.0
MAX_GROWTH_BYTES = 12 << 30
"""Address space that a type may take beyond what the libraries do."""
REASON_CHARACTERS = 110
PAGE_WIDTH = 120


OPENING = """\
# Model families

Every causal language model of transformers {version}, by `model_type`, with its default config. Before any
work a family is rehearsed: a small model of it with random weights, by strata and by transformers, layer by
layer. What differs is refused by name, so a family is right or not run. Other settings than the defaults may
be refused where these are right, and the other way round: the rehearsal is of the config at hand.

Made by `strata bench trust --parts families`; `tests/scripts/bench/trust/test_families.py` holds it.
"""


@dataclass(frozen=True, kw_only=True)
class WalkedFamily:
    """What became of a model type; `reason` says why it is not right."""

    model_type: str
    outcome: Literal["right", "refused", "wrong"]
    reason: str = ""


def causal_model_types() -> list[str]:
    """Every model type that the installed transformers has a causal language model for."""
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return sorted({config.model_type for config in mapping.keys()})  # noqa: SIM118


def walk_families(model_types: Sequence[str]) -> list[WalkedFamily]:
    """What becomes of each type, one after another."""
    torch.set_num_threads(1)
    return [walk_family(model_type) for model_type in model_types]


def walk_family(model_type: str) -> WalkedFamily:
    """Rehearses a type's default config in a child process, which is ended after MAX_SECONDS."""
    # Forked, so that transformers is imported once: a child computes on one thread and leaves no files.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_rehearse_in_child, args=(model_type, sender))
    child.start()
    sender.close()
    try:
        if not receiver.poll(MAX_SECONDS):
            return _wrong(model_type, f"takes more than {MAX_SECONDS:g} s")
        return receiver.recv()
    except EOFError:
        child.join()
        return _wrong(model_type, f"its process ended with status {child.exitcode}")
    finally:
        child.kill()
        child.join()
        receiver.close()


def families_page(families: Sequence[WalkedFamily]) -> str:
    """docs/families.md: the three lists."""
    by_outcome = {
        outcome: [family for family in families if family.outcome == outcome]
        for outcome in ("right", "refused", "wrong")
    }
    named = ", ".join(f"`{family.model_type}`" for family in by_outcome["right"])
    right = textwrap.fill(named, PAGE_WIDTH, break_on_hyphens=False)
    refused = [f"| `{family.model_type}` | {family.reason} |" for family in by_outcome["refused"]]
    wrong = [f"- `{family.model_type}`: {family.reason}" for family in by_outcome["wrong"]] or ["None."]
    sections = [
        ("Right", "right", [right]),
        ("Refused", "refused", ["| model type | why |", "|---|---|", *refused]),
        ("Wrong", "wrong", wrong),
    ]
    lines = [OPENING.format(version=transformers.__version__)]
    for title, outcome, content in sections:
        lines += [f"## {title} ({len(by_outcome[outcome])})", "", *content, ""]
    return "\n".join(lines)


def _rehearse_in_child(model_type: str, sender: Connection) -> None:
    _limit_memory()
    try:
        family = _rehearse(model_type)
    except BaseException as error:
        family = _wrong(model_type, f"{type(error).__name__}: {error}")
    sender.send(family)


def _limit_memory() -> None:
    limit = psutil.Process().memory_info().vms + MAX_GROWTH_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _rehearse(model_type: str) -> WalkedFamily:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / model_type
        folder.mkdir()
        (folder / CONFIG_FILE).write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        try:
            config, _ = decoder_config(read_config(folder), folder / CONFIG_FILE)
            build_rehearsed(config)
        except InputError as error:
            return _refused(model_type, str(error))
    return WalkedFamily(model_type=model_type, outcome="right")


def _refused(model_type: str, message: str) -> WalkedFamily:
    """Named is the type, its text model's, or the file, whose folder here is called like the type."""
    named = re.match(r"model type '(\w+)", message.replace("-", "_"))
    if named is None and f"/{model_type}/{CONFIG_FILE}" not in message:
        return _wrong(model_type, f"the type is not named: {message}")
    return WalkedFamily(model_type=model_type, outcome="refused", reason=_in_few_words(message))


def _wrong(model_type: str, reason: str) -> WalkedFamily:
    return WalkedFamily(model_type=model_type, outcome="wrong", reason=" ".join(reason.split()))


def _in_few_words(message: str) -> str:
    """The reason without the type, for a table's cell; sizes of this machine's memory left out."""
    told = re.sub(r"^model type '[^']*'(?: is not supported)?:? ?", "", message)
    told = told.split("; expected")[0].partition(f"{CONFIG_FILE}: ")[2] or told.split("; expected")[0]
    told = re.sub(r"\[enforce fail at.*", "its small model still takes more memory than there is", told)
    told = re.sub(r"[\d.]+%", "much", told).replace("|", "/")
    return told if len(told) <= REASON_CHARACTERS else f"{told[:REASON_CHARACTERS].rsplit(maxsplit=1)[0]} ..."
