"""Finds on a kernel what a pipeline names, wherever Kaggle has mounted it.

Below /kaggle/input, data sets lie at datasets/OWNER/NAME, models at
models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION and competitions at competitions/NAME, some of them still at
NAME alone; so names are looked up by their end.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from strata.engine.types import InputError
from strata.scripts.kaggle.cells import walk_mounts

INPUT = ("/", "kaggle", "input")


class Mounts:
    """The tree of mounts, looked through once.

    Args:
        root: the folder that is /kaggle/input.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts = {path.relative_to(root).parts: path for path in walk_mounts(root)}

    def find(self, name: str) -> Path:
        """The file or folder that a name means: that whose path ends most like it, the shallowest of these.

        A folder that holds nothing but a folder stands for that.

        Raises:
            InputError: there is none, or there are several.
        """
        wanted = _below_input(name)
        size = max((_num_same(parts, wanted) for parts in self._parts), default=0)
        if size == 0:
            raise InputError(f"{name}: not below {self._root}; mounted there: {self._mounted()}")
        alike = [parts for parts in self._parts if _num_same(parts, wanted) == size]
        depth = min(map(len, alike))
        shallow = [parts for parts in alike if len(parts) == depth]
        if len(shallow) > 1:
            told = " and ".join("/".join(parts) for parts in shallow[:3])
            raise InputError(f"{name}: could be {told} below {self._root}; expected a longer path")
        return _descend(self._parts[shallow[0]])

    def _mounted(self) -> str:
        deepest = {parts: path for parts, path in self._parts.items() if len(parts) <= 3 and path.is_dir()}
        return ", ".join("/".join(parts) for parts in sorted(deepest)) or "nothing"


def _below_input(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    if parts[:3] == INPUT:
        return parts[3:]
    return tuple(part for part in parts if part not in ("/", ".", ".."))


def _num_same(parts: tuple[str, ...], wanted: tuple[str, ...]) -> int:
    """How many parts at the end are the same."""
    num = 0
    for ours, theirs in zip(reversed(parts), reversed(wanted), strict=False):
        if ours != theirs:
            break
        num += 1
    return num


def _descend(path: Path) -> Path:
    while path.is_dir():
        inside = list(path.iterdir())
        if len(inside) != 1 or not inside[0].is_dir():
            break
        path = inside[0]
    return path
