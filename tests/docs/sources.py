"""The texts that the sources can say, with … where a value goes."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("engine", "kernels", "retrieval", "scripts", "training")
VALUE = "…"


@cache
def texts_of_sources() -> tuple[str, ...]:
    """Every string of every module, in one piece however many literals it is written as."""
    texts: list[str] = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            texts += [
                _text(node) for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.Constant))
            ]
    return tuple(text for text in texts if text)


def _text(node: ast.JoinedStr | ast.Constant) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
