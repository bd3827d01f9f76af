"""Requests as lm-evaluation-harness makes them, and how its answers and ours are compared."""

from __future__ import annotations

import pytest

SHOTS = "Question: Warm water\nAnswer: rises\n\nQuestion: What pulls?\nAnswer: the moon\n\n"
PAIRS = [
    (f"{SHOTS}Question: What carries sand?\nAnswer:", " the river"),
    (f"{SHOTS}Question: What carries sand?\nAnswer:", " a bee or two"),
    (f"{SHOTS}Question: Copper, iron and\nAnswer: ", "tin"),
    ("", "The moon pulls on the ocean"),
    ("<s>The sun", " and the moon"),
    ("Numbers", " 3,000\n\u00e9t\u00e9 \U0001f600"),
    ("The tide ", " turns"),
]


def requests(kind, arguments):
    """The harness' requests of a kind, of a task called `few`."""
    instance = pytest.importorskip("lm_eval.api.instance")
    return [
        instance.Instance(request_type=kind, doc={}, arguments=each, idx=index, metadata=("few", index, 1))
        for index, each in enumerate(arguments)
    ]


def assert_same(found, expected):
    for (total, is_greedy), (their_total, their_greedy) in zip(found, expected, strict=True):
        assert total == pytest.approx(their_total, abs=1e-3)
        assert is_greedy == their_greedy
