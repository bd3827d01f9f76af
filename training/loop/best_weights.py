"""The weights of the best evaluation: out/best, a link to out/best-<step>. Knows no model.

Older ones stay while a checkpoint may still go back to them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from strata.training.loop.folders import flush_folder, remove_tree, write_folder_atomically
from strata.training.loop.train_checkpoint import list_checkpoints, read_state

LINK = "best"


def save_best(out: Path, save: Callable[[Path], None], step: int) -> None:
    """Lets `save` write what has been trained, as the best so far.

    Raises:
        OutputError: the disk refused; the former best is still there.
    """
    write_folder_atomically(out / f"{LINK}-{step}", save)
    link_best(out, step)
    prune_best(out, step)


def link_best(out: Path, step: int | None) -> None:
    """Points out/best at the weights of a step; None takes the link away."""
    link = out / LINK
    if step is None:
        link.unlink(missing_ok=True)
        return
    temporary = out / f".{LINK}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"{LINK}-{step}", target_is_directory=True)
    os.replace(temporary, link)
    flush_folder(out)


def remove_best(out: Path) -> None:
    """Removes the best weights of an earlier run."""
    link_best(out, None)
    prune_best(out, None)


def prune_best(out: Path, step: int | None) -> None:
    """Removes former best weights, but not those of `step` nor of a checkpoint that is still there."""
    steps = {step} | {read_state(folder)[0].best_step for folder in list_checkpoints(out)}
    kept = {f"{LINK}-{step}" for step in steps}
    for folder in out.glob(f"{LINK}-*"):
        if folder.name not in kept:
            remove_tree(folder)
