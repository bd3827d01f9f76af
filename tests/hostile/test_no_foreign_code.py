"""No code of a model folder is run and nothing is unpickled: every call of a library says so.

The calls are found in the syntax trees of all that is shipped, so that a new one without the word fails here.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "kernels", "training", "retrieval", "scripts")

LOADERS = ("from_pretrained", "from_config")
MODELS = ("SentenceTransformer", "CrossEncoder")
WITHOUT_CODE = ("PeftModel",)
"""PEFT takes no such argument; adapter_config.check_for_peft checks its folders before."""
PICKLING_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {"torch.load", "pd.read_pickle", "pandas.read_pickle"}
RUNNING_CALLS = {"eval", "exec"}


@functools.cache
def nodes() -> list[tuple[str, ast.Call | ast.Import | ast.ImportFrom]]:
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Call, ast.Import, ast.ImportFrom))
    ]


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Where a call is, the name of what is called, and the call."""
    return [(place, ast.unparse(node.func), node) for place, node in nodes() if isinstance(node, ast.Call)]


def says(node: ast.Call, keyword: str, value: object) -> bool:
    given = {word.arg: word.value for word in node.keywords}
    return isinstance(given.get(keyword), ast.Constant) and given[keyword].value == value


def needs_the_word(name: str) -> bool:
    owner, _, last = name.rpartition(".")
    return last in MODELS or (last in LOADERS and owner.rpartition(".")[2] not in WITHOUT_CODE)


def test_every_load_of_a_model_trusts_no_code() -> None:
    loads = [(place, name, node) for place, name, node in calls() if needs_the_word(name)]
    assert len(loads) >= 9, "the calls that are there were not found"
    silent = [f"{place} {name}" for place, name, node in loads if not says(node, "trust_remote_code", False)]
    assert silent == []


def test_nothing_is_unpickled() -> None:
    imported = [
        f"{place} {name}"
        for place, node in nodes()
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
        if name.partition(".")[0] in PICKLING_MODULES
    ]
    called = [f"{place} {name}" for place, name, _ in calls() if name in PICKLING_CALLS]
    arrays = [
        f"{place} {name}"
        for place, name, node in calls()
        if name in ("np.load", "numpy.load") and not says(node, "allow_pickle", False)
    ]
    assert imported + called + arrays == []


def test_no_text_is_run_as_python() -> None:
    assert [f"{place} {name}" for place, name, _ in calls() if name in RUNNING_CALLS] == []


@pytest.mark.parametrize(
    ("call", "is_found"),
    [
        ("AutoModel.from_config(c)", True),
        ("x.AutoTokenizer.from_pretrained(p)", True),
        ("_class(c).from_pretrained(p)", True),
        ("PeftModel.from_pretrained(p)", False),
        ("save_pretrained(p)", False),
    ],
)
def test_which_calls_need_the_word(call: str, is_found: bool) -> None:
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    assert needs_the_word(ast.unparse(node.func)) == is_found
    assert not says(node, "trust_remote_code", False)
